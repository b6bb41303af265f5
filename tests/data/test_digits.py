from __future__ import annotations

import pickle

import pytest
import torch

from pfray.data import digits
from pfray.errors import ConfigError


def test_sizes_follow_the_fractions_and_inputs_are_images() -> None:
    task = digits.build()
    assert (len(task.train), len(task.validation), len(task.test)) == (1079, 359, 359)
    assert task.input_shape == (1, 32, 32)
    assert task.train.inputs.dtype == torch.uint8
    assert task.train.targets.dtype == torch.int64
    assert int(task.train.inputs.max()) == 255
    assert task.num_outputs == 10


def test_training_inputs_are_normalized_to_zero_mean_and_unit_variance() -> None:
    task = digits.build()
    x = task.normalize(task.train.inputs)
    assert x.mean().item() == pytest.approx(0, abs=1e-4)
    assert x.std().item() == pytest.approx(1, abs=1e-3)


def test_enlarging_keeps_the_orientation_and_the_brightness() -> None:
    from sklearn.datasets import load_digits

    small = torch.from_numpy(load_digits().images[:5]).float() * 255 / 16
    large = digits.read_images().inputs[:5, 0].float()
    back = torch.nn.functional.avg_pool2d(large[:, None], 4)[:, 0]
    # Bilinear interpolation blurs, so the block means agree only roughly, but any flip or transpose would disagree.
    assert torch.corrcoef(torch.stack((small.flatten(), back.flatten())))[0, 1] > 0.95
    assert back.mean().item() == pytest.approx(small.mean().item(), rel=0.02)


def test_splits_are_disjoint_and_stratified() -> None:
    task = digits.build()
    everything = {bytes(x) for split in (task.train, task.validation, task.test) for x in split.inputs.numpy()}
    assert len(everything) == 1797  # no image of this set occurs twice, so none is in two splits
    for split in (task.validation, task.test):
        share = split.targets.bincount() / len(split)
        whole = task.train.targets.bincount() / len(task.train)
        assert (share - whole).abs().max() < 0.005


def test_the_same_seed_gives_the_same_splits_and_another_seed_others() -> None:
    assert digits.build().fingerprint() == digits.build().fingerprint()
    assert digits.build().fingerprint() != digits.build(split_seed=1).fingerprint()


def test_the_head_of_a_split_is_a_fair_sample() -> None:
    assert len(digits.build().train.head(100).targets.unique()) == 10


def test_augmentation_moves_by_at_most_two_pixels_and_obeys_its_generator() -> None:
    task = digits.build()
    assert task.augment is not None
    inputs = torch.zeros(400, 1, 32, 32, dtype=torch.uint8)
    inputs[:, :, 16, 16] = 7
    out = task.augment(inputs, torch.Generator().manual_seed(0))
    places = out.nonzero()[:, 2:] - 16
    assert len(places) == 400
    assert places.min() == -2
    assert places.max() == 2
    assert torch.equal(out, task.augment(inputs, torch.Generator().manual_seed(0)))
    assert not torch.equal(out, task.augment(inputs, torch.Generator().manual_seed(1)))


def test_the_task_survives_pickling() -> None:
    task = digits.build()
    assert task.augment is not None
    copy = pickle.loads(pickle.dumps(task))
    assert copy.fingerprint() == task.fingerprint()
    x = task.train.inputs[:4]
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert torch.equal(copy.augment(x, generators[0]), task.augment(x, generators[1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_fraction": 0}, "data.validation_fraction: 0 is not allowed"),
        ({"test_fraction": 1.5}, "data.test_fraction: 1.5 is not allowed"),
        ({"test_fraction": "half"}, "data.test_fraction: 'half' is not allowed"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"validation_fraction": 0.001}, "Allowed: 10 to"),
        ({"split_seed": -1}, "data.split_seed: -1 is not allowed"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        digits.build(**settings)
    assert "\n" not in str(caught.value)
