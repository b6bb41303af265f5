from __future__ import annotations

import math
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pfray.errors import DataError
from pfray.task import Split, Task, soft_cross_entropy, top1


def split(count: int = 6) -> Split:
    return Split(torch.arange(count * 12, dtype=torch.uint8).view(count, 3, 2, 2), torch.arange(count) % 3)


def test_a_split_refuses_unequal_lengths() -> None:
    with pytest.raises(DataError, match="6 inputs but 5 targets"):
        Split(split().inputs, torch.zeros(5, dtype=torch.int64))


def test_a_split_travels_as_numpy_arrays_without_a_copy_of_them() -> None:
    original = split()
    rebuild, arrays = original.__reduce__()
    assert all(isinstance(array, np.ndarray) for array in arrays)
    assert np.shares_memory(arrays[0], original.inputs.numpy())
    assert rebuild(*arrays).inputs.data_ptr() == original.inputs.data_ptr()


@pytest.mark.filterwarnings("error")
def test_a_split_comes_back_equal_even_from_read_only_arrays() -> None:
    original = split()
    copy = pickle.loads(pickle.dumps(original))
    assert torch.equal(copy.inputs, original.inputs)
    assert torch.equal(copy.targets, original.targets)
    assert (copy.inputs.dtype, copy.targets.dtype) == (torch.uint8, torch.int64)
    rebuild, arrays = original.__reduce__()
    for array in arrays:
        array.flags.writeable = False
    assert torch.equal(rebuild(*arrays).inputs, original.inputs)


def test_head_is_the_first_samples_or_all() -> None:
    assert torch.equal(split().head(2).inputs, split().inputs[:2])
    assert len(split().head(None)) == 6
    assert len(split().head(100)) == 6


def task(**changes: object) -> Task:
    parts = {"train": split(), "validation": split(3), "test": split(4), "num_outputs": 3, **changes}
    return Task("toy", **parts)  # type: ignore[arg-type]


def test_bytes_are_scaled_then_normalized_channel_by_channel() -> None:
    x = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    out = task(mean=(0.5, 0.25, 0.1), std=(0.5, 0.25, 0.2)).normalize(x)
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == pytest.approx([-1.0, 3.0, 0.5])


def test_floats_are_not_scaled_and_one_number_serves_all_channels() -> None:
    x = torch.tensor([[2.0, 4.0]], dtype=torch.float64)
    out = task(mean=(1.0,), std=(2.0,)).normalize(x)
    assert out.dtype == torch.float32
    assert out.tolist() == [[0.5, 1.5]]


def test_batches_cover_the_split_once_in_order() -> None:
    toy = task()
    batches = list(toy.batches(toy.train, 4, torch.device("cpu")))
    assert [len(targets) for _, targets in batches] == [4, 2]
    assert torch.equal(torch.cat([x for x, _ in batches]), toy.normalize(toy.train.inputs))
    assert torch.equal(torch.cat([y for _, y in batches]), toy.train.targets)


def test_input_shape_leaves_out_the_batch() -> None:
    assert task().input_shape == (3, 2, 2)


def test_top1_is_one_where_the_largest_logit_is_the_target() -> None:
    outputs = torch.tensor([[0.1, 0.9], [2.0, -1.0], [0.0, 1.0]])
    assert top1(outputs, torch.tensor([1, 1, 1])).tolist() == [1.0, 0.0, 1.0]


def test_soft_cross_entropy_equals_a_case_worked_by_hand() -> None:
    # At T = 2 the logits 2 ln 3, 0 and 0, 0 soften to (3/4, 1/4) and (1/2, 1/2).
    teacher = torch.tensor([[2 * math.log(3), 0.0]])
    student = torch.zeros(1, 2)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert soft_cross_entropy(student, teacher, 2.0).item() == pytest.approx(4 * divergence, rel=1e-5)
    # The mean over the batch: a second sample that agrees halves it.
    both = soft_cross_entropy(torch.zeros(2, 2), torch.cat((teacher, student)), 2.0)
    assert both.item() == pytest.approx(2 * divergence, rel=1e-5)


def test_soft_cross_entropy_is_zero_for_equal_distributions_and_its_gradient_hardly_depends_on_temperature() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    assert soft_cross_entropy(logits + 3, logits, 4.0).item() == pytest.approx(0, abs=1e-6)
    norms = []
    for temperature in (20.0, 80.0):
        student = torch.zeros(1, 3, requires_grad=True)
        soft_cross_entropy(student, logits, temperature).backward()
        assert student.grad is not None
        norms.append(student.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_the_fingerprint_sees_shapes_and_types() -> None:
    """Bytes alone are the same for images of another shape, and for numbers of another type."""
    base = task()
    parts = {name: getattr(base, name) for name in ("train", "validation", "test")}
    flat = replace(base, **{n: Split(own.inputs.flatten(2)[..., None], own.targets) for n, own in parts.items()})
    typed = replace(base, **{n: Split(own.inputs.view(torch.int8), own.targets) for n, own in parts.items()})
    assert len({base.fingerprint(), flat.fingerprint(), typed.fingerprint()}) == 3


def test_the_fingerprint_changes_with_any_split_and_with_the_normalization() -> None:
    base = task().fingerprint()
    assert task().fingerprint() == base
    other = Split(split(4).inputs, split(4).targets.flip(0))
    changed = [task(test=other), task(validation=split(2)), task(train=split(5)), task(mean=(0.1,)), task(std=(2.0,))]
    assert base not in {t.fingerprint() for t in changed}
    assert len({t.fingerprint() for t in changed}) == 5


def test_soft_labels_of_pixels_weigh_as_the_cross_entropy_does() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 5, 4, 4, generator=generator)
    pixels = [outputs.movedim(1, -1).reshape(-1, 5) for outputs in (student, teacher)]
    wanted = soft_cross_entropy(pixels[0], pixels[1], 2.0)
    assert soft_cross_entropy(student, teacher, 2.0).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_any_cross_entropy_has_soft_labels() -> None:
    smoothed = partial(torch.nn.functional.cross_entropy, label_smoothing=0.1)
    assert all(task(loss=loss).has_soft_labels for loss in (torch.nn.CrossEntropyLoss(), smoothed))
    assert not task(loss=lambda outputs, targets: outputs.mean()).has_soft_labels


def test_losses_with_weights_go_where_the_outputs_are() -> None:
    weighted = task(loss=torch.nn.CrossEntropyLoss(weight=torch.ones(3)))
    placed = weighted.on(torch.device("meta"))
    assert placed.loss.weight.device.type == "meta"
    assert weighted.loss.weight.device.type == "cpu"
    assert task().on(torch.device("meta")).loss is torch.nn.functional.cross_entropy


def test_samples_may_be_single_numbers() -> None:
    pair = Split({"user": torch.arange(6), "item": torch.arange(6)}, torch.arange(6) % 3)
    assert Task("pairs", pair, pair, pair, 3).input_shape == ()
