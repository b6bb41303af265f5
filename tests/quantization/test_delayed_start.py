"""Quantization-aware training: activations that are rounded late, and batch norms that stay from some step on."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learners import non_uniform_quant, uniform_quant
from learners.litert_quant import LitertQuant
from learners.litert_quant import Settings as LitertSettings
from pfray.measure.evaluation import evaluate
from pfray.quantization.delayed_start import with_delays
from pfray.quantization.straight_through import StraightThrough
from pfray.training.batch_norm import batch_norms
from pfray.training.hooks import StatefulHook
from pfray.training.loop import fit
from pfray.training.settings import Training
from tests.small import chain, make_task

PLAN = {"1.0": 2, "2.0": 3}
LEARNERS: list[tuple[Any, Any]] = [
    (uniform_quant.UniformQuant, uniform_quant.Settings),
    (non_uniform_quant.NonUniformQuant, non_uniform_quant.Settings),
]


def trained(learner: Any, settings: Any, watch: Any, plan: dict[str, int] = PLAN) -> nn.Module:
    """After 6 steps in two epochs, with an evaluation after each; watch(model, steps done) is called after the hook."""
    task = make_task()
    begun = learner(chain(), task, settings).compress(plan, 6)
    model, hook = begun.model, begun.hook

    def both(step: int) -> None:
        hook(step)
        watch(model, step)

    training = Training(lr=0.05, batch_size=15)
    fit(model, task, training, seed=0, hook=both, steps=6, on_epoch=lambda *_: evaluate(model, task, task.validation))
    return model


@pytest.mark.parametrize(("learner", "settings_type"), LEARNERS)
def test_activations_are_rounded_after_the_delay_and_always_in_evaluation(learner, settings_type):
    read: list[tuple[bool, int]] = []

    def watch(model: nn.Module, step: int) -> None:
        if step == 0:
            model[1][0].register_forward_pre_hook(look)

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.append((layer.training, len(inputs[0].unique())))

    trained(learner, settings_type(activation_bits=2, delay=3), watch)
    training = [values > 4 for in_training, values in read if in_training]
    assert training == [True, True, True, False, False, False]
    assert all(values <= 4 for in_training, values in read if not in_training)


@pytest.mark.parametrize(("learner", "settings_type"), LEARNERS)
def test_the_statistics_of_batch_norms_stay_after_their_step_and_normalize_in_training(learner, settings_type):
    means, modes = [], []

    def watch(model: nn.Module, step: int) -> None:
        norm = batch_norms(model)[0]
        means.append(norm.running_mean.clone())
        if step == 0:
            norm.register_forward_pre_hook(lambda own, _: modes.append(own.training))
            weights.append(norm.weight.detach().clone())

    weights: list[Tensor] = []
    model = trained(learner, settings_type(freeze_norms=2), watch)
    moved = [not torch.equal(one, other) for one, other in itertools.pairwise(means)]
    assert moved == [True, True, False, False, False, False]
    assert modes[:2] == [True, True]
    assert not any(modes[2:])
    # Its scale is trained all the same.
    assert not torch.equal(batch_norms(model)[0].weight, weights[0])


def test_a_candidate_with_8_bits_waits_as_the_graph_does():
    values: list[int] = []

    def watch(model: nn.Module, step: int) -> None:
        values.append(sum(module.waiting for module in model.modules() if hasattr(module, "waiting")))

    trained(LitertQuant, LitertSettings(delay=2), watch, {"1.0": 8, "2.0": 8})
    assert values == [2, 2, 0, 0, 0, 0, 0]


def test_the_learners_own_hook_is_called_and_its_state_kept():
    layer = nn.Linear(2, 2)
    assert with_delays(layer, None) is None
    own = StraightThrough({}, {"weight": torch.ones(2)})
    assert with_delays(layer, own) is own
    late = with_delays(layer, own, delay=2)
    assert isinstance(late, StatefulHook)
    late.load_state_dict({"weight": torch.zeros(2)})
    assert late.state_dict()["weight"].sum() == own.latents["weight"].sum() == 0
    steps: list[int] = []
    late = with_delays(layer, steps.append, freeze_norms=1)
    assert late is not None
    late(5)
    assert steps == [5]


def test_a_delay_of_activations_that_stay_float_is_refused():
    with pytest.raises(ValueError, match=r"delay is 10 and activation_bits is null.*Remedy: activation_bits=8"):
        uniform_quant.Settings(delay=10)
