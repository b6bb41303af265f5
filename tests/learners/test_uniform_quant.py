"""Uniform quantization: levels of each channel, zero as a level, ranges that move, and training on the levels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from learners.uniform_quant import Settings, UniformQuant, fit_ranges
from pfray.measure.evaluation import evaluate
from pfray.quantization.qparams import qparams_of
from pfray.training import loop
from pfray.training.settings import Training
from tests.small import chain, informative, make_task
from tests.zoo import conv, head

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
