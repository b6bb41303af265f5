"""The compressed model where no training follows."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from learners.weight_sparse import Settings, WeightSparse
from pfray.learner.base import Compressed
from pfray.learner.build import Weights, finish_candidate, rebuild_candidate, untrained_model
from pfray.learner.context import Context, Recipe
from pfray.measure.evaluation import evaluate
from pfray.space import Plan
from pfray.task import Split
from pfray.training.settings import Training
from tests.small import chain, make_task


class Louder(WeightSparse):
    """Multiplies what the first batch norm reads, which its statistics can make up for."""

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            model.get_parameter("0.0.weight").mul_(plan["by"])
        return Compressed(model)


class Nothing(WeightSparse):
    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        return Compressed(copy.deepcopy(self.model))


@pytest.fixture(scope="module")
def context() -> Context:
    """A network whose batch norms have the statistics of its training images, and which is right about all of them."""
    from pfray.training.batch_norm import reestimate_batch_norm

    task, model = make_task(samples=400), chain()
    reestimate_batch_norm(model, task, 400, "float32")
    with torch.inference_mode():
        labels = model(task.normalize(task.train.inputs)).argmax(1)
    train = Split(task.train.inputs, labels)
    task = replace(task, train=train, validation=train.head(300), test=train.head(300))
    return Context(task, model)


def accuracy(model: nn.Module, context: Context) -> float:
    return evaluate(model, context.task, context.task.validation).accuracy


def untrained_by(learner: type[WeightSparse], context: Context, plan: Plan) -> nn.Module:
    return untrained_model(Recipe(learner, Settings(), Training(epochs=0)).candidate(plan), context)


def test_batch_norms_are_put_right(context):
    before = Louder(context.teacher, context.task).compress({"by": 40.0}).model
    assert accuracy(before, context) < 0.9
    assert accuracy(untrained_by(Louder, context, {"by": 40.0}), context) > 0.98


def test_statistics_that_are_better_stay(context):
    model = untrained_by(Louder, context, {"by": 1.0})
    assert accuracy(model, context) == 1
    assert torch.equal(model.get_buffer("0.1.running_mean"), context.teacher.get_buffer("0.1.running_mean"))


def test_a_plan_that_decides_nothing_leaves_the_model_as_it_is(context):
    shifted = copy.deepcopy(context.teacher)
    shifted.get_buffer("0.1.running_mean").add_(3)
    model = untrained_by(Nothing, replace(context, teacher=shifted), {})
    assert torch.equal(model.get_buffer("0.1.running_mean"), shifted.get_buffer("0.1.running_mean"))


class Halving(Nothing):
    """Keeps a share of a hidden layer; its structure is left to the plan."""

    has_finish = True

    def finish(self, plan: Plan, start: nn.Module | None = None) -> Compressed:
        width = 8 if start is None else len(start.get_parameter("0.weight"))
        return Compressed(self.rebuild({"width": min(width, plan["width"])}))

    def rebuild(self, structure: Plan) -> nn.Module:
        width = int(structure["width"])
        return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))


def test_a_stage_is_rebuilt_with_its_own_plan_and_not_with_the_next_ones(context):
    recipe, device = Recipe(Halving, Settings(), Training(epochs=1)), torch.device("cpu")
    first, second = recipe.candidate({"width": 6}), recipe.candidate({"width": 3})
    trained = finish_candidate(first, context, None, device)
    assert trained.structure is None
    stage = Weights(trained.structure, trained.model.state_dict())
    assert finish_candidate(second, context, (first, stage), device).model.get_parameter("0.weight").shape == (3, 4)
    assert rebuild_candidate(first, context, stage, device).get_parameter("0.weight").shape == (6, 4)
