"""The compressed model where no training follows."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from learners.weight_sparse import Settings, WeightSparse
from pfray.config.sections import Search
from pfray.learner.build import untrained
from pfray.learner.context import Job
from pfray.measure.evaluation import evaluate
from pfray.task import Split, Task
from pfray.training.settings import Distill, Training
from tests.small import chain, make_task


class Louder(WeightSparse):
    """Multiplies what the first batch norm reads, which its statistics can make up for."""

    @staticmethod
    def prepare(model: nn.Module, task: Task, settings: Any) -> None:
        return None

    @staticmethod
    def compress(model: nn.Module, plan: dict[str, float], settings: Any, cache: Any, steps: int) -> None:
        with torch.no_grad():
            model.get_parameter("0.0.weight").mul_(plan["by"])


@pytest.fixture(scope="module")
def job() -> Job:
    """A network whose batch norms have the statistics of its training images, and which is right about all of them."""
    from pfray.training.batch_norm import reestimate_batch_norm

    task, model = make_task(samples=400), chain()
    reestimate_batch_norm(model, task, 400, "float32")
    with torch.inference_mode():
        labels = model(task.normalize(task.train.inputs)).argmax(1)
    train = Split(task.train.inputs, labels)
    task = replace(task, train=train, validation=train.head(300), test=train.head(300))
    return Job(task, model, Settings(), Training(epochs=0), Distill(), Search(), 0, "float32")


def accuracy(model: nn.Module, job: Job) -> float:
    return evaluate(model, job.task, job.task.validation).accuracy


def test_batch_norms_are_put_right(job):
    before = copy.deepcopy(job.teacher)
    Louder.compress(before, {"by": 40.0}, None, None, 0)
    assert accuracy(before, job) < 0.9
    assert accuracy(untrained(Louder, job, {"by": 40.0}), job) > 0.98


def test_statistics_that_are_better_stay(job):
    model = untrained(Louder, job, {"by": 1.0})
    assert accuracy(model, job) == 1
    assert torch.equal(model.get_buffer("0.1.running_mean"), job.teacher.get_buffer("0.1.running_mean"))


def test_a_plan_that_decides_nothing_leaves_the_model_as_it_is(job):
    class Nothing(Louder):
        @staticmethod
        def compress(model: nn.Module, plan: dict[str, float], settings: Any, cache: Any, steps: int) -> None:
            pass

    shifted = copy.deepcopy(job.teacher)
    shifted.get_buffer("0.1.running_mean").add_(3)
    model = untrained(Nothing, replace(job, teacher=shifted), {})
    assert torch.equal(model.get_buffer("0.1.running_mean"), shifted.get_buffer("0.1.running_mean"))
