"""What every learner promises, whatever its algorithm: each module of learners/ is held to all of it."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import math
import typing

import numpy as np
import pytest
import torch
from torch import nn

from learners.litert_quant import LitertQuant
from pfray.config.component import PIPELINE
from pfray.config.registry import component_modules, find_class
from pfray.data import digits
from pfray.learner.trainable import Learner
from pfray.measure.cost import count_params, stored_bits, total_macs
from pfray.models.lenet import lenet
from pfray.models.mobilenet import mobilenet_v1
from pfray.nn.modes import place
from pfray.space import CompressionSpace, Plan
from pfray.task import Task, example_input
from pfray.training.batch_norm import reestimate_batch_norm
from pfray.training.loop import fit
from pfray.training.settings import Training
from tests.small import described_bytes

# A pipeline has no defaults and does what its learners do; tests/learners/test_pipeline.py.
NAMES = sorted(set(component_modules("learner")) - {PIPELINE})
TEACHERS = {
    "lenet": lambda: lenet(in_channels=1),
    "mobilenet": lambda: mobilenet_v1(in_channels=1, width=0.25),
}


@pytest.fixture(scope="module")
def task() -> Task:
    return digits.build()


@pytest.fixture(params=NAMES)
def learner(request: pytest.FixtureRequest) -> type[Learner]:
    return find_class("learner", request.param, Learner)


@pytest.fixture(params=TEACHERS)
def teacher(request: pytest.FixtureRequest, task: Task) -> nn.Module:
    torch.manual_seed(0)
    model = place(TEACHERS[request.param](), "cpu")
    # With the statistics it was made with, an untrained mobilenet's activations vanish and every model's do alike.
    reestimate_batch_norm(model, task, 250, "float32")
    return model


def halfway(space: CompressionSpace, learner: type[Learner]) -> dict[str, float]:
    """A limit half way between what can be reached, on the first of the space's costs.

    Networks of their own may be far larger than the teacher; those are not even trained for a step here.
    """
    unit = next(iter(space.costs(space.decode(np.ones(len(space))))))
    low, high = space.reachable(unit)
    return {unit: low + (0.02 if learner.from_scratch else 0.5) * (high - low)}


def space_and_plan(learner: type[Learner], teacher: nn.Module, task: Task) -> tuple[CompressionSpace, Plan]:
    space = learner.space(teacher, task, learner.settings_type())
    if not len(space):
        pytest.skip("it decides nothing")
    return space, space.uniform(halfway(space, learner))


def compressed(learner: type[Learner], teacher: nn.Module, plan: Plan, cache: object) -> nn.Module:
    model = copy.deepcopy(teacher)
    torch.manual_seed(0)  # as before every trial, for those that draw weights
    learner.compress(model, plan, learner.settings_type(), cache, 0)
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def measured_costs(
    learner: type[Learner], model: nn.Module, teacher: nn.Module, task: Task, names: list[str]
) -> dict[str, float]:
    """What the finished model costs, in the units that a space may predict. names: of the space's knobs."""
    params = count_params(model)[0]
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    zero = sum(int((w == 0).sum()) for w in weights)
    # Biases that start at zero are nothing the learner removed.
    zero_before = count_params(teacher)[0] - count_params(teacher)[1]
    layers = dict(model.named_modules())
    decided = [layers[name] for name in names if hasattr(layers.get(name), "weight")]
    quantized = any(hasattr(m, "weight_bits") for m in decided)
    return {
        "bits": sum(m.weight.numel() * int(getattr(m, "weight_bits", 32)) for m in decided)
        / max(1, sum(m.weight.numel() for m in decided)),
        "sparsity": zero / sum(w.numel() for w in weights),
        # Of a model of another structure every parameter counts, of one with zeros those that are not zero.
        "params": params if params != count_params(teacher)[0] else count_params(model)[1] + zero_before,
        "macs": total_macs(model, example_input(task)),
        # With the batch norms that were folded into quantized layers, which are no longer there. The scales of an int8
        # file are not counted.
        "size_bytes": stored_bits(model) / 8
        + (4 * (count_params(teacher)[0] - params) if quantized else 0)
        + (described_bytes(model) if learner is not LitertQuant else 0),
    }


def test_settings_are_a_documented_frozen_dataclass_whose_defaults_do(learner):
    settings_type = learner.settings_type
    settings = settings_type()
    assert settings_type.__module__ == learner.__module__
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.anything = 1
    assert len(settings_type.__doc__) > 10
    explained = " ".join(cls.__doc__ for cls in settings_type.__mro__ if cls is not object)
    for field in dataclasses.fields(settings_type):
        assert field.name in explained, f"{field.name} is not explained"
    assert len(importlib.import_module(learner.__module__).__doc__) > 20


def test_the_three_functions_are_static_so_that_they_run_without_ray(learner):
    for name in ("space", "prepare", "compress"):
        assert isinstance(inspect.getattr_static(learner, name), staticmethod), name
    hints = typing.get_type_hints(learner.space)
    assert hints["settings"] is learner.settings_type


def test_knobs_have_unique_names_and_the_costs_are_finite_and_monotone(learner, teacher, task):
    space = learner.space(teacher, task, learner.settings_type())
    assert len(set(space.names)) == len(space)
    two_choices = all(len(knob.choices) == 2 for knob in space.knobs)
    earlier: dict[str, float] = {}
    for position in (0.0, 1.0) if two_choices else (0.0, 0.3, 0.7, 1.0):
        costs = space.costs(space.decode(np.full(len(space), position)))
        assert all(math.isfinite(cost) for cost in costs.values())
        for unit, cost in costs.items():
            rising = unit != "sparsity"
            assert unit not in earlier or (cost > earlier[unit] if rising else cost < earlier[unit])
        earlier = costs
    for knob in space.knobs:
        assert knob.facts["params"] > 0


def test_at_its_full_end_a_plan_changes_nothing(learner, teacher, task):
    space = learner.space(teacher, task, learner.settings_type())
    if "bits" in space.costs(space.decode(np.ones(len(space)))):
        pytest.skip("the most bits are fewer than a float's")
    if learner.from_scratch:
        pytest.skip("nothing is left of the teacher")
    cache = learner.prepare(teacher, task, learner.settings_type())
    model = compressed(learner, teacher, {knob.name: knob.full for knob in space.knobs}, cache)
    assert equal(state(model), state(teacher))


def test_the_compressed_model_costs_exactly_what_the_space_predicted(learner, teacher, task):
    space, plan = space_and_plan(learner, teacher, task)
    cache = learner.prepare(teacher, task, learner.settings_type())
    model = compressed(learner, teacher, plan, cache)
    measured = measured_costs(learner, model, teacher, task, space.names)
    for unit, cost in space.costs(plan).items():
        assert measured[unit] == pytest.approx(cost, abs=1e-12), unit
    assert space.meets(plan, halfway(space, learner))


def test_the_compressed_model_still_runs_and_gives_other_outputs(learner, teacher, task):
    _, plan = space_and_plan(learner, teacher, task)
    cache = learner.prepare(teacher, task, learner.settings_type())
    model = compressed(learner, teacher, plan, cache).eval()
    with torch.inference_mode():
        outputs, before = model(example_input(task)), teacher.eval()(example_input(task))
    assert outputs.shape == (1, 10)
    assert outputs.isfinite().all()
    assert not torch.allclose(outputs, before)


def test_neither_preparing_nor_compressing_a_copy_changes_the_teacher(learner, teacher, task):
    _, plan = space_and_plan(learner, teacher, task)
    before = state(teacher)
    modes = [module.training for module in teacher.modules()]
    cache = learner.prepare(teacher, task, learner.settings_type())
    compressed(learner, teacher, plan, cache)
    assert equal(state(teacher), before)
    assert [module.training for module in teacher.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


def test_one_cache_serves_many_plans_each_giving_the_same_bits_every_time(learner, teacher, task):
    space, plan = space_and_plan(learner, teacher, task)
    cache = learner.prepare(teacher, task, learner.settings_type())
    first = state(compressed(learner, teacher, plan, cache))
    stronger = state(compressed(learner, teacher, space.decode(space.encode(plan) * 0.5), cache))
    again = state(compressed(learner, teacher, plan, cache))
    fresh = state(compressed(learner, teacher, plan, learner.prepare(teacher, task, learner.settings_type())))
    assert equal(first, again)
    assert equal(first, fresh)
    # Of two knobs that keep or remove, all may have to go.
    assert equal(first, stronger) == (plan == space.decode(np.zeros(len(space))))


@pytest.mark.parametrize("steps", [1, 5])
def test_a_training_ends_on_the_plan(learner, teacher, task, steps):
    space, plan = space_and_plan(learner, teacher, task)
    settings = learner.settings_type()
    model = copy.deepcopy(teacher)
    hook = learner.compress(model, plan, settings, learner.prepare(teacher, task, settings), steps)
    fit(model, task, Training(epochs=1, lr=0.02, batch_size=64), seed=0, hook=hook, steps=steps)
    measured = measured_costs(learner, model, teacher, task, space.names)
    for unit, cost in space.costs(plan).items():
        # The biases that start at zero are trained, so the parameters may be more by those; the weights are exact.
        exact = unit in ("sparsity", "bits")
        assert measured[unit] == pytest.approx(cost, abs=1e-12 if exact else count_params(model)[0] * 0.1)
    assert not equal(state(model), state(teacher))


def test_error_curves_fall_from_the_compressed_to_the_full_end(learner, teacher, task):
    curves = learner.error_curves(teacher, task, learner.settings_type())
    space = learner.space(teacher, task, learner.settings_type())
    if not curves:
        pytest.skip("it gives none")
    assert set(curves) <= set(space.names)
    # The most bits are fewer than a float's.
    nothing = 1e-2 if "bits" in space.costs(space.decode(np.ones(len(space)))) else 1e-6
    for name, curve in curves.items():
        assert np.all(np.diff(curve) <= 1e-9), name
        assert 0 <= curve[-1] < min(nothing, curve[0]), name
        assert curve[0] <= 1 + 1e-9, name
