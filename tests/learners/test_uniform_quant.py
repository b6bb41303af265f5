"""Uniform quantization: levels of each channel, zero as a level, ranges that move, and training on the levels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from learners.uniform_quant import Settings, UniformQuant, fit_ranges
from pfray.export import pt2
from pfray.export.packed import file
from pfray.measure.evaluation import evaluate
from pfray.quantization.qparams import qparams_of
from pfray.task import Task, example_input
from pfray.training import loop
from pfray.training.batch_norm import reestimate_batch_norm
from pfray.training.settings import Training
from tests.small import chain, informative, make_task
from tests.zoo import conv, head, randomize

PLAN = {"1.0": 2, "2.0": 3, "3.0": 1}


@pytest.fixture
def teacher() -> nn.Module:
    return chain()


def start(teacher: nn.Module, settings: Settings, steps: int) -> tuple[nn.Module, Any]:
    compressed = UniformQuant(teacher, make_task(), settings).compress(PLAN, steps)
    return compressed.model, compressed.hook


def test_the_levels_of_a_channel_are_evenly_spaced_between_its_ends(teacher):
    model, hook = start(teacher, Settings(range_from="min_max"), 0)
    assert hook is None
    for row, exact in zip(model[1][0].weight, teacher[1][0].weight, strict=True):
        levels = torch.linspace(exact.min().item(), exact.max().item(), 4)
        nearest = levels[(exact.flatten()[:, None] - levels).abs().argmin(1)].view(exact.shape)
        assert torch.allclose(row, nearest, atol=1e-6)


def test_a_symmetric_range_has_zero_among_its_levels(teacher):
    with torch.no_grad():
        teacher[2][0].weight[:, 0] = 0.0
    symmetric, _ = start(teacher, Settings(symmetric=True), 0)
    assert (symmetric[2][0].weight[:, 0] == 0).all()
    found = qparams_of(symmetric[2][0].state_dict(), "weight")
    # The zero is code 2^(k-1).
    assert torch.equal(found.low, -4 * found.step)
    plain, _ = start(teacher, Settings(), 0)
    assert (plain[2][0].weight[:, 0] != 0).any()


@pytest.mark.parametrize("interval", [0, 2])
def test_after_every_step_each_weight_is_the_level_nearest_to_its_latent_one(teacher, interval):
    settings = Settings(interval=interval)
    model, hook = start(teacher, settings, 6)
    first = {name: model.get_submodule(name).weight_low.clone() for name in PLAN}
    moved = []

    def watch(step: int) -> None:
        hook(step)
        for name, width in PLAN.items():
            layer = model.get_submodule(name)
            low, step_size = layer.weight_low, layer.weight_step
            shape = (-1, 1, 1, 1)
            codes = ((hook.latents[name] - low.view(shape)) / step_size.view(shape)).round().clamp(0, 2**width - 1)
            assert torch.allclose(layer.weight, codes * step_size.view(shape) + low.view(shape), atol=1e-6)
            assert max(len(row.unique()) for row in layer.weight) <= 2**width
        moved.append(any(not torch.equal(model.get_submodule(n).weight_low, first[n]) for n in PLAN))

    # 4 steps an epoch, and so 2 epochs.
    loop.fit(model, make_task(), Training(lr=0.05, batch_size=15), seed=0, hook=watch, steps=6)
    assert len(moved) == 7
    assert moved == [False] * 7 if interval == 0 else moved == [False, False, True, True, True, True, True]
    if interval:
        for name, width in PLAN.items():
            layer = model.get_submodule(name)
            expected = fit_ranges(hook.latents[name], width, len(layer.weight), settings=settings)
            assert torch.allclose(layer.weight_low, expected.low)


def test_training_on_the_levels_learns():
    torch.manual_seed(0)
    task, teacher = informative(), nn.Sequential(conv(8, 8), conv(8, 8), head(8, 4))
    compressed = UniformQuant(teacher, task, Settings(max_bits=2)).compress({"1.0": 2}, 60)
    model = compressed.model
    first = model[1][0].weight.clone()
    loop.fit(model, task, Training(lr=0.05, batch_size=40), seed=0, hook=compressed.hook, steps=60)
    assert evaluate(model, task, task.test).accuracy > 0.8
    assert (model[1][0].weight != first).any()


EFFORT = {"images": 60, "positions": 16, "iterations": 200}


def residual(groups: int = 1) -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.last = conv(2, 8), conv(8, 8), head(8, 3)
            self.two, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.last(torch.relu(self.norm(self.two(self.one(x))) + x))

    torch.manual_seed(0)
    model = randomize(Residual()).eval()
    # As in a trained network: re-estimating the statistics would change a float model otherwise.
    reestimate_batch_norm(model, make_task(), 60, "float32")
    return model


def mean_error(model: nn.Module, teacher: nn.Module, task: Task) -> float:
    with torch.no_grad():
        return (model.eval()(task.train.inputs) - teacher(task.train.inputs)).square().mean().item()


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("activation_bits", [None, 8])
def test_finish_keeps_the_outputs_better_than_the_nearest_levels(fold, groups, activation_bits):
    task, teacher, plan = make_task(), residual(groups), {"one.0": 2, "two": 2}
    settings = Settings(fold=fold, activation_bits=activation_bits, **EFFORT)
    algorithm = UniformQuant(teacher, task, settings)
    nearest, finished = algorithm.compress(plan).model, algorithm.finish(plan).model
    # The nine inputs of a depthwise output are nearly independent here, so the nearest levels are nearly the best.
    share = 0.95 if groups == 8 else 0.8
    assert mean_error(finished, teacher, task) < share * mean_error(nearest, teacher, task)
    for name, bits in plan.items():
        before, after = (qparams_of(model.get_submodule(name).state_dict(), "weight") for model in (nearest, finished))
        assert torch.equal(before.low, after.low)
        assert torch.equal(before.step, after.step)
        weight = finished.get_submodule(name).weight
        assert torch.equal(after.quantize(weight), weight)
        assert max(len(row.unique()) for row in weight) <= 2**bits
    assert any((finished.get_submodule(n).weight != nearest.get_submodule(n).weight).any() for n in plan)


def test_the_files_have_the_rounded_weights_bit_for_bit(tmp_path):
    task, plan = make_task(), {"one.0": 3, "two": 2}
    model = UniformQuant(residual(), task, Settings(fold=True, **EFFORT)).finish(plan).model.eval()
    file.save(tmp_path / "model.packed", model.state_dict())
    state = file.load(tmp_path / "model.packed")
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    pt2.save(model, example_input(task), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    for name in plan:
        assert torch.equal(program.state_dict[f"{name}.weight"], model.get_submodule(name).weight)


def test_nearest_rounding_is_what_compress_gives():
    task, plan = make_task(), {"one.0": 3, "two": 2}
    algorithm = UniformQuant(residual(), task, Settings(fold=True, rounding="nearest", images=60))
    nearest, finished = algorithm.compress(plan).model.state_dict(), algorithm.finish(plan).model.state_dict()
    assert all(torch.equal(finished[name], value) for name, value in nearest.items())
