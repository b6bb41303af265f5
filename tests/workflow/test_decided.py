from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from learners.channel_pruned import LONG, ChannelPruned
from learners.litert_quant import LitertQuant
from learners.weight_sparse import WeightSparse
from pfray.config.schema import Experiment
from pfray.data._stream import Stream
from pfray.learner.pipeline import Pipeline, Settings, Step
from pfray.search.tpe import TPE
from pfray.search.uniform import Uniform
from pfray.task import Split, Task
from pfray.workflow.decided import affordable_steps, decide


def experiment(finetune: dict[str, Any], **search: Any) -> Experiment:
    return Experiment.model_validate({
        "name": "x", "model": "lenet", "data": "digits", "learner": "weight_sparse", "target": {"params": "0.5x"},
        "search": search, "finetune": finetune,
    })  # fmt: skip


@pytest.fixture(scope="module")
def task() -> Task:
    """Of 3,000 samples: 300 steps an epoch in batches of 10."""
    split = Split(torch.zeros(3000, 1, 4, 4), torch.arange(3000) % 4)
    return Task("many", split, split, split, 4)


def test_trials_are_trained_where_all_of_them_take_at_most_half_as_long_as_the_chosen_plan(task):
    training = {"epochs": 10, "batch_size": 10}  # 3,000 steps, half of which are 50 times 30
    own = WeightSparse.settings_type()
    for trials, steps in ((50, 30), (51, 0)):
        found = decide(experiment(training, trials=trials), WeightSparse, own, TPE, task)
        assert found.finetune_steps == steps
        assert len(found.notes) == (1 if steps else 0)
    assert affordable_steps(experiment({"epochs": 0}, trials=1), task) == 0
    for given in (0, 7):
        found = decide(experiment(training, trials=50, finetune_steps=given), WeightSparse, own, TPE, task)
        assert (found.finetune_steps, found.notes) == (given, ())
    assert decide(experiment(training, trials=50), WeightSparse, own, Uniform, task).finetune_steps == 0


def test_trials_of_data_read_batch_by_batch_are_not_trained(task):
    sample = torch.zeros(1, 4, 4), 0
    stream = Stream("train", [sample] * 3000, default_collate, tuple, torch.arange(3000))
    few = experiment({"epochs": 10, "batch_size": 10}, trials=2)
    assert affordable_steps(few, task) == 30
    assert affordable_steps(few, replace(task, train=stream)) == 0


@pytest.mark.parametrize(("own", "later", "criterion"), [
    (None, 0, "lasso"), (LONG // 300 + 1, 0, "l1"), (0, LONG // 300 + 1, "l1"), (0, (LONG - 1) // 300, "lasso"),
])  # fmt: skip
def test_after_a_learner_of_a_pipeline_the_trainings_of_the_later_ones_follow_too(task, own, later, criterion):
    finetune = {} if own is None else {"epochs": own}
    steps = Settings((
        Step("channel_pruned", ChannelPruned, ChannelPruned.settings_type(images=7), finetune),
        Step("litert_quant", LitertQuant, LitertQuant.settings_type(), {"epochs": later}),
    ))  # fmt: skip
    found = decide(experiment({"epochs": 0, "batch_size": 10}, finetune_steps=0), Pipeline, steps, TPE, task)
    pruned, quantized = found.learner_settings.steps
    assert (pruned.settings.criterion, pruned.settings.images, pruned.finetune) == (criterion, 7, finetune)
    assert quantized == steps.steps[1]
    assert len(found.notes) == 1
    # Its learners have trainings of their own, so its trials take none by default.
    many = experiment({"epochs": 99, "batch_size": 10}, trials=1)
    assert decide(many, Pipeline, steps, TPE, task).finetune_steps == 0
