"""Mean and covariance of what layers read, against numpy's on all rows."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pfray.errors import UnsupportedModel
from pfray.nn.im2col import weight_rows
from pfray.pruning.reconstruction import covariance
from pfray.pruning.reconstruction.covariance import (
    Moments,
    RunningCovariance,
    cached_moments,
    input_moments,
    moments_macs,
)
from pfray.pruning.reconstruction.lasso import lasso_selections, unit_gram
from pfray.pruning.reconstruction.least_squares import lost_shares, reconstruct
from pfray.task import Split, Task


def task(samples: int = 30, shape: tuple[int, ...] = (3, 8, 7)) -> Task:
    inputs = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(0)) + 0.5
    split = Split(inputs, torch.zeros(samples, dtype=torch.int64))
    return Task("noise", split, split, split, num_outputs=2)


class Small(nn.Module):
    """A convolution that runs twice, a linear layer, and one that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, 2, 1)
        self.head, self.auxiliary = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.relu(self.twice(torch.relu(self.stem(x))))).mean((2, 3))
        return self.head(x) + (self.auxiliary(x) if self.training else 0)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Small()


def all_rows(model: nn.Module, layer: str, inputs: Tensor) -> np.ndarray:
    """What a convolution reads, by torch's own unfold; several runs one below the other."""
    found = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    own = model.get_submodule(layer)
    if isinstance(own, nn.Linear):
        return np.concatenate([x.numpy() for x in found])
    unfold = nn.Unfold(own.kernel_size, own.dilation, own.padding, own.stride)
    return np.concatenate([unfold(x).transpose(1, 2).flatten(0, 1).numpy() for x in found]).astype(float)


def test_the_work_of_an_input_is_the_forward_pass_and_the_products_of_its_rows(model):
    # 8 x 7 pixels: stem to 6 x 5, then to 3 x 3 and 2 x 2, with rows of 27, 36 and 36 values; head one row of 4.
    forward = 30 * 27 * 4 + 9 * 36 * 4 + 4 * 36 * 4 + 4 * 2
    layers = ["stem", "twice", "head"]
    assert moments_macs(model, task(), layers, 1000) == forward + 30 * 27**2 + (9 + 4) * 36**2 + 4**2
    assert moments_macs(model, task(), layers, 5) == forward + 5 * 27**2 + (5 + 4) * 36**2 + 4**2
    assert moments_macs(model, task(), [], 5) == forward


def test_with_every_position_taken_they_are_those_of_all_rows(model, monkeypatch):
    monkeypatch.setattr(covariance, "BATCH", 7)  # 20 images in three batches
    own = task()
    model.train()
    found = input_moments(model, own, ["stem", "twice", "head", "auxiliary"], images=20, positions=1000)
    assert set(found) == {"stem", "twice", "head"}
    for name, m in found.items():
        rows = all_rows(model.eval(), name, own.train.inputs[:20])
        np.testing.assert_allclose(m.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(m.covariance, np.cov(rows.T, bias=True), rtol=1e-3, atol=1e-4)
        about_zero = m.uncentered()
        np.testing.assert_allclose(about_zero.covariance, rows.T @ rows / len(rows), rtol=1e-3, atol=1e-4)
        assert not about_zero.mean.any()


def test_sampled_positions_come_close_and_depend_on_the_seed_only(model):
    own, names = task(600), ["twice"]
    exact = input_moments(model, own, names, 600, 1000)["twice"]
    sampled, again, other = (input_moments(model, own, names, 600, 8, seed)["twice"] for seed in (0, 0, 1))
    assert torch.equal(sampled.covariance, again.covariance)
    assert not torch.equal(sampled.covariance, other.covariance)
    assert (sampled.covariance - exact.covariance).norm() < 0.1 * exact.covariance.norm()
    assert (sampled.mean - exact.mean).norm() < 0.1 * exact.mean.norm()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused_by_the_layers_name(model, value):
    model.stem.weight.data[1, 0, 0, 0] = value
    with pytest.raises(UnsupportedModel, match=r"layer twice reads values that are not finite. Remedy: check the"):
        input_moments(model, task(), ["stem", "twice", "head"], 20, 5)


def test_measuring_leaves_the_model_as_it_was(model):
    before = copy.deepcopy(model.state_dict())
    model.stem.eval()
    input_moments(model, task(), ["twice"], 20, 5)
    assert (model.training, model.stem.training) == (True, False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.twice._forward_hooks


def test_an_equal_model_reads_the_cache_and_a_changed_one_does_not(model, monkeypatch, tmp_path):
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path))
    own, measured = task(), []
    measure = input_moments
    monkeypatch.setattr(covariance, "input_moments", lambda *args: measured.append(args) or measure(*args))

    def read(model: nn.Module, layers: tuple[str, ...] = ("twice", "head"), images: int = 20) -> dict[str, Moments]:
        return cached_moments(model, own, layers, images, 5)

    first = read(model)
    again = read(copy.deepcopy(model))
    assert len(measured) == 1
    assert list(first) == list(again) == ["twice", "head"]
    for name in first:
        assert torch.equal(first[name].covariance, again[name].covariance)
        assert torch.equal(first[name].mean, again[name].mean)
    read(model.to(memory_format=torch.channels_last))
    assert len(measured) == 1
    read(model, images=21)
    read(model, layers=("twice",))
    model.head.weight.data[0, 0] += 1e-6
    read(model)
    assert len(measured) == 4
    assert read(model, layers=("auxiliary",)) == {}


def test_another_forward_with_the_same_weights_is_measured_again(model, monkeypatch, tmp_path):
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path))
    before = cached_moments(model, task(), ["twice"], 20, 5)["twice"]
    monkeypatch.setattr(torch, "relu", torch.tanh)
    after = cached_moments(model, task(), ["twice"], 20, 5)["twice"]
    assert not torch.allclose(before.mean, after.mean, atol=1e-3)


def test_less_calibration_than_the_layer_is_wide_still_gives_a_choice_and_finite_weights():
    torch.manual_seed(0)
    model, own = nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 6, 3)), task(4)
    m = input_moments(model, own, ["2"], 4, 3)["2"]
    assert np.linalg.matrix_rank(m.covariance.double(), tol=1e-5) <= 12 < 360
    weight = weight_rows(model[2])
    selections = lasso_selections(unit_gram(m, weight, np.arange(40)[:, None], 40))
    assert [len(kept) for kept in selections] == list(range(41))
    rows = (selections[20][:, None] * 9 + np.arange(9)).ravel()
    new = reconstruct(m, weight, rows)
    assert new.isfinite().all()
    # 12 rows can be met by 180 weights, and the weights stay of the size they were.
    whole, lost = weight.double(), weight.double().clone()
    lost[rows] = 0.0
    cut, everything = (float((w * (m.covariance.double() @ w)).sum()) for w in (lost, whole))
    assert lost_shares(m, weight, [rows])[0] < 0.01 < cut / everything
    assert new.norm() < 3 * weight.norm()


def relative(found: Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected))


def test_deviations_that_are_small_against_the_means_are_not_lost():
    """Temperatures in kelvin, 293 +- 1, of batches whose means differ."""
    generator = torch.Generator().manual_seed(0)
    inputs = 293 + torch.randn(400, 6, 1, generator=generator) @ torch.randn(1, 6, generator=generator)[None]
    inputs = (inputs + 0.3 * torch.randn(400, 6, 6, generator=generator)).flatten(1)
    inputs[200:] += 2
    split = Split(inputs, torch.zeros(400, dtype=torch.int64))
    own = Task("kelvin", split, split, split, num_outputs=2)
    found = input_moments(nn.Sequential(nn.Linear(36, 2)), own, ["0"], 400, 1)["0"]
    rows = inputs.double().numpy()
    assert relative(found.covariance, np.cov(rows.T, bias=True)) < 1e-5
    assert relative(found.mean, rows.mean(0)) < 1e-7
    # The means' share of the second moments is 85,849 times the deviations' in every entry.
    deviations = found.uncentered().covariance - torch.outer(found.mean.double(), found.mean.double())
    assert relative(deviations, np.cov(rows.T, bias=True)) < 1e-5
    # In float32 the second moments alone are off by more than the deviations.
    plain = inputs.T @ inputs / 400 - torch.outer(inputs.mean(0), inputs.mean(0))
    assert relative(plain, np.cov(rows.T, bias=True)) > 1e-3


def test_covariances_with_other_rows_and_empty_batches():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=generator) + 100, torch.randn(50, 3, generator=generator) - 1000
    y[:, 0] += 3 * x[:, 1]
    running = RunningCovariance()
    for start, end in ((0, 0), (0, 20), (20, 20), (20, 50)):
        running.add(x[start:end], y[start:end])
    expected = np.cov(torch.cat([x, y], 1).double().numpy().T, bias=True)
    assert running.count == 50
    assert relative(running.covariances[0], expected[:4, :4]) < 1e-5
    assert relative(running.covariances[1], expected[:4, 4:]) < 1e-5
    assert relative(torch.cat(running.means), torch.cat([x, y], 1).double().mean(0).numpy()) < 1e-7


class Pair(nn.Module):
    """A layer that is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, one: Tensor, two: Tensor) -> dict[str, Tensor]:
        return {"sum": self.one(one) + self.two(input=two)}


@pytest.mark.parametrize("by_name", [False, True])
def test_inputs_of_any_form_are_measured(by_name):
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(20, 4, generator=generator), torch.randn(20, 5, generator=generator)
    split = Split({"two": two, "one": one} if by_name else (one, two), torch.zeros(20, 3))
    own = Task("pairs", split, split, split, num_outputs=3, loss=lambda outputs, targets: outputs["sum"].mean(),
               score=lambda outputs, targets: outputs["sum"].mean(1))  # fmt: skip
    found = input_moments(Pair(), own, ["one", "two"], 20, 1)
    assert relative(found["one"].covariance, np.cov(one.double().numpy().T, bias=True)) < 1e-5
    assert relative(found["two"].covariance, np.cov(two.double().numpy().T, bias=True)) < 1e-5
