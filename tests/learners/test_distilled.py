"""Students in the teacher's place: widths, exact costs, their training, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from learners.distilled import STEP, Distilled, Settings
from pfray.config.registry import parse_settings
from pfray.errors import ConfigError, InfeasibleTarget, UnsupportedModel
from pfray.learner.context import Context
from pfray.measure.cost import count_params, total_macs
from pfray.measure.evaluation import evaluate
from pfray.models.lenet import lenet
from pfray.models.vgg import vgg7
from pfray.task import example_input
from pfray.training.loop import fit
from pfray.training.settings import Distill, Training
from tests.small import make_task

SMALL = Settings(width=0.25)


def flat(num_outputs: int, width: float = 1.0) -> nn.Module:
    """A user's own student."""
    hidden = round(8 * width)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, hidden), nn.ReLU(), nn.Linear(hidden, num_outputs))


def text(width: float = 1.0) -> str:
    return "no model"


def student_of(context: Context, width: float, seed: int = 0) -> nn.Module:
    algorithm = Distilled(context.teacher, context.task, SMALL)
    torch.manual_seed(seed)
    return algorithm.compress({"width": width}).model


def test_its_one_knob_is_the_width_and_the_costs_are_those_of_the_model(context):
    space = Distilled(context.teacher, context.task, SMALL).space()
    (knob,) = space.knobs
    assert (knob.name, knob.compressed, knob.full, len(knob.choices)) == ("width", STEP, 0.25, 16)
    for width in (STEP, 0.125, 0.25):
        model = vgg7(in_channels=1, width=width)
        params, macs = count_params(model)[0], total_macs(model, example_input(context.task))
        assert space.costs({"width": width}) == {"params": params, "macs": macs, "size_bytes": 4 * params}
        assert count_params(student_of(context, width))[0] == params


def test_it_is_as_wide_as_the_target_allows(context):
    space = Distilled(context.teacher, context.task, SMALL).space()
    limits = {"params": 40_000}
    width = space.uniform(limits)["width"]
    assert space.costs({"width": width})["params"] <= 40_000 < space.costs({"width": width + STEP})["params"]
    with pytest.raises(InfeasibleTarget, match=r"target.params: 100 is out of reach"):
        space.uniform({"params": 100})


def test_finding_the_costs_draws_no_random_number(context):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    Distilled(context.teacher, context.task, SMALL).space().costs({"width": 0.125})
    assert torch.equal(before, torch.get_rng_state())


def test_it_starts_with_random_weights_of_the_runs_seed(context):
    first, again, other = (student_of(context, 0.125, seed) for seed in (0, 0, 1))
    weights = [model.features[0].weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert type(context.teacher).__name__ == "LeNet"


def test_it_learns_from_the_teachers_soft_labels_alone(context):
    student = student_of(context, 0.125)
    training = Training(epochs=2, lr=0.1, batch_size=64)
    fit(student, context.task, training, seed=0, teacher=context.teacher, distill=Distill(weight=1.0))
    assert evaluate(student, context.task, context.task.validation).accuracy > 0.7


def test_a_student_of_one_size_meets_a_target_or_does_not():
    task = make_task((1, 32, 32), classes=10)
    teacher = vgg7(in_channels=1, width=0.5)
    space = Distilled(teacher, task, Settings(student="lenet")).space()
    params = count_params(lenet(in_channels=1))[0]
    assert len(space) == 0
    assert space.uniform({"params": params}) == {}
    assert space.costs({})["params"] == params
    with pytest.raises(InfeasibleTarget, match=f"out of reach; this model and learner reach {params:,} to {params:,}"):
        space.uniform({"params": params - 1})


@pytest.mark.parametrize(("settings", "message"), [
    ({"student": "vgg9"}, r"learner.student: unknown name 'vgg9'.*Did you mean 'vgg"),
    ({"student": "no_module:f"}, r"learner.student: cannot import 'no_module'"),
    ({"width": 0.01}, r"learner.width: 0.01 is not allowed: .*greater than or equal"),
    ({"width": 5}, r"learner.width: 5 is not allowed"),
])  # fmt: skip
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings("learner", Settings, settings)


def test_a_student_that_does_not_fit_the_data_is_refused(context):
    with pytest.raises(ConfigError, match=r"learner.student: '.*:text' returned 'no model', not a torch.nn.Module"):
        Distilled(context.teacher, context.task, Settings(student="tests.learners.test_distilled:text")).space()
    small = make_task((3, 8, 8))
    with pytest.raises(UnsupportedModel, match=r"VGG fails on an input of shape \(1, 3, 8, 8\)"):
        Distilled(context.teacher, small, Settings()).space()
    own = Distilled(context.teacher, small, Settings(student="tests.learners.test_distilled:flat")).space()
    assert np.diff([own.costs({"width": width})["params"] for width in (0.5, 1.0)]) == 4 * (192 + 1 + 3)
