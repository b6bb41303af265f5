"""The promises of every algorithm, quick and careful; each module of learners/ is held to all of them."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import math
import subprocess
import sys
import typing

import numpy as np
import pytest
import torch
from torch import nn

from pfray.config.registry import find_class
from pfray.data import digits
from pfray.learner.base import Algorithm
from pfray.measure.cost import count_params, total_macs
from pfray.models.lenet import lenet
from pfray.nn.modes import place
from pfray.task import Task, example_input
from pfray.training.batch_norm import reestimate_batch_norm
from pfray.training.loop import fit
from pfray.training.settings import Training
from pfray.utils.settings import NoSettings
from tests.learners.contract import (
    CAREFUL,
    NAMES,
    TEACHERS,
    compressed,
    finished,
    halfway,
    measured_costs,
    some_plan,
    space_and_plan,
    wiped,
)
from tests.small import equal, state


@pytest.fixture(scope="module")
def task() -> Task:
    return digits.build()


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def kind(name: str) -> type[Algorithm]:
    return find_class("learner", name, Algorithm)


@pytest.fixture(params=TEACHERS)
def teacher(request: pytest.FixtureRequest, task: Task) -> nn.Module:
    torch.manual_seed(0)
    model = place(TEACHERS[request.param](), "cpu")
    # With its initial statistics, an untrained mobilenet's activations vanish and all models' outputs are alike.
    reestimate_batch_norm(model, task, 250, "float32")
    return model


@pytest.fixture
def algorithm(kind: type[Algorithm], teacher: nn.Module, task: Task) -> Algorithm:
    return kind(teacher, task)


@pytest.fixture
def careful(name: str, kind: type[Algorithm], teacher: nn.Module, task: Task) -> Algorithm:
    return kind(teacher, task, kind.settings_type(**CAREFUL.get(name, {})))


def test_settings_are_a_documented_frozen_dataclass_whose_defaults_do(kind, task):
    settings_type = kind.settings_type
    settings = settings_type()
    assert kind(lenet(in_channels=1), task).settings == settings
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.anything = 1
    if settings_type is not NoSettings:
        assert settings_type.__module__ == kind.__module__
        assert typing.get_type_hints(kind)["settings"] is settings_type
    assert len(settings_type.__doc__) > 10
    explained = " ".join(cls.__doc__ for cls in settings_type.__mro__ if cls is not object)
    for field in dataclasses.fields(settings_type):
        assert field.name in explained, f"{field.name} is not explained"
    assert len(importlib.import_module(kind.__module__).__doc__) > 20


RAYLESS = """
import json, sys
sys.modules["ray"] = None
import torch
from pfray.config.registry import find_class
from pfray.data import digits
from pfray.errors import ConfigError
from pfray.learner.base import Algorithm
from pfray.models.lenet import lenet
task, model = digits.build(), lenet(in_channels=1)
for name, settings in json.loads(sys.argv[1]).items():
    kind = find_class("learner", name, Algorithm)
    algorithm = kind(model, task, kind.settings_type(**settings))
    space = algorithm.space()
    plan = space.decode([0.0] * len(space))
    algorithm.compress(plan)
    finished = algorithm.finish(plan)
    algorithm.rebuild(finished.structure).load_state_dict(finished.model.state_dict())
    print(name)
"""


def test_every_algorithm_runs_without_ray():
    settings = {name: CAREFUL.get(name, {}) for name in NAMES}
    command = [sys.executable, "-c", RAYLESS, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == NAMES, done.stderr


def test_knobs_have_unique_names_and_the_costs_are_finite_and_monotone(algorithm):
    space = algorithm.space()
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


def test_at_its_full_end_a_plan_changes_nothing(algorithm, teacher):
    space = algorithm.space()
    if "bits" in space.costs(space.decode(np.ones(len(space)))):
        pytest.skip("the most bits are fewer than a float's")
    if algorithm.from_scratch:
        pytest.skip("nothing is left of the teacher")
    model = compressed(algorithm, {knob.name: knob.full for knob in space.knobs}).model
    assert equal(state(model), state(teacher))


def test_the_compressed_model_costs_exactly_what_the_space_predicted(algorithm):
    space, plan = space_and_plan(algorithm)
    measured = measured_costs(algorithm, compressed(algorithm, plan).model, space.names)
    for unit, cost in space.costs(plan).items():
        assert measured[unit] == pytest.approx(cost, abs=1e-12), unit
    assert space.meets(plan, halfway(algorithm, space))


def test_the_compressed_model_still_runs_and_gives_other_outputs(algorithm, teacher, task):
    _, plan = space_and_plan(algorithm)
    model = compressed(algorithm, plan).model.eval()
    with torch.inference_mode():
        outputs, before = model(example_input(task)), teacher.eval()(example_input(task))
    assert outputs.shape == (1, 10)
    assert outputs.isfinite().all()
    assert not torch.allclose(outputs, before)


def test_the_model_is_never_changed(careful, teacher):
    plan, before = some_plan(careful), state(teacher)
    modes = [module.training for module in teacher.modules()]
    for made in (compressed(careful, plan), compressed(careful, plan, steps=2), finished(careful, plan)):
        if made.hook is not None:
            made.hook(0)
        wiped(made.model)
    wiped(careful.rebuild(careful.structure(plan)))
    careful.error_curves()
    careful.stages(plan)
    assert equal(state(teacher), before)
    assert [module.training for module in teacher.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


def test_one_object_serves_many_plans_each_giving_the_same_bits_every_time(algorithm, teacher, task):
    space, plan = space_and_plan(algorithm)
    model = compressed(algorithm, plan).model
    first = state(model)
    wiped(model)
    stronger = state(compressed(algorithm, space.decode(space.encode(plan) * 0.5)).model)
    again = state(compressed(algorithm, plan).model)
    fresh = state(compressed(type(algorithm)(teacher, task), plan).model)
    assert equal(first, again)
    assert equal(first, fresh)
    # Of two knobs that keep or remove, all may have to go.
    assert equal(first, stronger) == (plan == space.decode(np.zeros(len(space))))


@pytest.mark.parametrize("steps", [1, 5])
def test_a_training_ends_on_the_plan(algorithm, teacher, task, steps):
    space, plan = space_and_plan(algorithm)
    start = algorithm.compress(plan, steps)
    fit(start.model, task, Training(epochs=1, lr=0.02, batch_size=64), seed=0, hook=start.hook, steps=steps)
    measured = measured_costs(algorithm, start.model, space.names)
    for unit, cost in space.costs(plan).items():
        # The biases that start at zero are trained, so the parameters may be more by those; the weights are exact.
        exact = unit in ("sparsity", "bits")
        assert measured[unit] == pytest.approx(cost, abs=1e-12 if exact else count_params(start.model)[0] * 0.1)
    assert not equal(state(start.model), state(teacher))


def test_error_curves_fall_from_the_compressed_to_the_full_end(algorithm):
    curves, space = algorithm.error_curves(), algorithm.space()
    assert bool(curves) == algorithm.has_error_curves
    if not curves:
        pytest.skip("it gives none")
    assert set(curves) <= set(space.names)
    # The most bits are fewer than a float's.
    nothing = 1e-2 if "bits" in space.costs(space.decode(np.ones(len(space)))) else 1e-6
    for name, curve in curves.items():
        assert np.all(np.diff(curve) <= 1e-9), name
        assert 0 <= curve[-1] < min(nothing, curve[0]), name
        assert curve[0] <= 1 + 1e-9, name


def test_the_structure_of_a_finished_model_is_json_that_rebuilds_it(careful, teacher, task):
    plan = some_plan(careful)
    made = finished(careful, plan)
    assert made.hook is None
    structure = json.loads(json.dumps(made.structure))
    assert structure == made.structure == careful.structure(plan)
    # Elsewhere: another object on another copy of the model.
    other = type(careful)(copy.deepcopy(teacher), task, careful.settings).rebuild(structure)
    other.load_state_dict(made.model.state_dict())
    inputs = task.normalize(task.test.inputs[:20])
    with torch.inference_mode():
        outputs, expected = place(other, "cpu").eval()(inputs), place(made.model, "cpu").eval()(inputs)
    assert expected.isfinite().all()
    assert torch.allclose(outputs, expected, atol=1e-5)


def test_without_a_finish_of_its_own_it_is_what_compress_gives(careful):
    if careful.has_finish:
        pytest.skip("it has one")
    plan = some_plan(careful)
    assert equal(state(finished(careful, plan).model), state(compressed(careful, plan).model))


def test_the_plan_is_reached_by_way_of_milder_ones_each_from_the_one_before(name, careful, teacher, task):
    plan = some_plan(careful)
    stages = careful.stages(plan)
    assert bool(stages) == careful.permanent
    assert type(careful)(teacher, task).stages(plan) == []
    if not stages:
        pytest.skip("it has no stages")
    assert all(stage.epochs >= 1 for stage in stages)
    start, params = None, [count_params(teacher)[0]]
    for each in [*(stage.plan for stage in stages), plan]:
        before = None if start is None else state(start)
        made = finished(careful, each, start)
        assert start is None or equal(state(start), before)
        rebuilt = careful.rebuild(made.structure)
        rebuilt.load_state_dict(made.model.state_dict())
        assert total_macs(rebuilt, example_input(task)) == total_macs(made.model, example_input(task))
        start = made.model
        params.append(count_params(start)[0])
    assert params == sorted(params, reverse=True)
    assert len(set(params)) == len(params)
    # Layer removal takes filters out on top of the plan.
    assert name == "layer_removal" or params[-1] == careful.space().costs(plan)["params"]
