"""What is told of a search, and what its trials are sent. They themselves are in whole runs, which need Ray."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learners.channel_pruned import ChannelPruned
from learners.litert_quant import LitertQuant
from learners.weight_sparse import WeightSparse
from pfray.config.search_space import as_knob
from pfray.config.sections import Resources
from pfray.data import digits
from pfray.learner.context import Context, Recipe
from pfray.learner.pipeline import Pipeline, Settings, Step
from pfray.learner.scoring import Scoring, TrialSpec
from pfray.models.lenet import lenet
from pfray.objective import Objective
from pfray.reporting.observers import Observers
from pfray.search.random import Random
from pfray.space import Knob
from pfray.storage.run_folder import RunFolder
from pfray.task import Task, as_split
from pfray.training.settings import Training
from pfray.workflow import trials


@pytest.mark.parametrize(("objective", "metric", "score", "text"), [
    ("agreement", {}, -0.35591, "agreement -0.3559"), ("amc", {}, -2.0, "amc -2.0000"),
    ("accuracy", {}, 0.97834, "accuracy 97.83 %"),
    ("accuracy", {"metric_name": "mse", "higher_is_better": False, "is_share": False}, -0.1583, "mse 0.1583"),
])  # fmt: skip
def test_the_best_score_has_a_name_and_the_metric_its_own_sign(objective, metric, score, text) -> None:
    context = Context(replace(digits.build(), **metric), lenet(in_channels=1))
    recipe = Recipe(WeightSparse, WeightSparse.settings_type(), Training())
    spec = TrialSpec(context, recipe, Scoring(Objective(objective)))
    assert trials._score_text(spec, score) == text


def test_a_trial_has_the_samples_that_its_settings_ask_for() -> None:
    images = torch.zeros(1, 4, 4, dtype=torch.uint8)
    files = as_split("train", [(images, index % 4) for index in range(3000)])
    task = Task("files", files, files, files, 4)
    steps = (Step("channel_pruned", ChannelPruned, ChannelPruned.settings_type(images=1300), {}),
             Step("litert_quant", LitertQuant, LitertQuant.settings_type(images=1200), {}))  # fmt: skip
    recipe = Recipe(Pipeline, Settings(steps), Training(batch_size=100))
    found = {}
    for key, scoring in {"plain": Scoring(), "norms": Scoring(bn_images=2000),
                         "tuned": Scoring(rounds=2, finetune_steps=9)}.items():  # fmt: skip
        spec = TrialSpec(Context(task, lenet(in_channels=1)), recipe, scoring)
        found[key] = len(trials.in_memory(spec, Observers()).context.task.train)
    assert found == {"plain": 1300, "norms": 2000, "tuned": 1800}
    assert len(spec.context.task.train) == 3000


def test_a_trial_has_the_samples_of_the_highest_values_that_are_searched() -> None:
    images = torch.zeros(1, 4, 4, dtype=torch.uint8)
    files = as_split("train", [(images, index % 4) for index in range(3000)])
    spec = TrialSpec(
        Context(Task("files", files, files, files, 4), lenet(in_channels=1)),
        Recipe(WeightSparse, WeightSparse.settings_type(), Training(batch_size=10),
               searched=("learner.images", "finetune.batch_size")),
        Scoring(finetune_steps=10),
    )  # fmt: skip
    knobs = [as_knob("learner.images", "integers(100, 1700)", None), Knob("conv", 0.1, 1.0)]
    sent = trials.in_memory(spec, Observers(), knobs).context.task.train
    assert (len(sent), len(sent.head(1700))) == (1700, 1700)
    knobs = [as_knob("finetune.batch_size", "integers(10, 240)", None)]
    assert len(trials.in_memory(spec, Observers(), knobs).context.task.train) == 2400


def test_settings_of_images_are_found_in_pipelines() -> None:
    assert trials.images_read(WeightSparse.settings_type(images=1300)) == [1300]
    assert trials.images_read(object()) == []


def test_a_search_that_runs_out_of_plans_is_complete_and_says_why() -> None:
    assert trials._why_complete("search", 1, 2) == (
        "search is complete with 1 of 2 trials: only one plan meets the target, so it is the best"
    )
    assert trials._why_complete("search", 9, 60) == (
        "search is complete with 9 of 60 trials: no other plan was found that meets the target"
    )


def test_a_search_without_gain_chooses_the_first_plan_and_says_so(tmp_path) -> None:
    context = Context(digits.build(), lenet(in_channels=1))
    recipe = Recipe(WeightSparse, WeightSparse.settings_type(), Training())
    spec = TrialSpec(context, recipe, Scoring(Objective("agreement")))
    space, limits = WeightSparse(context.teacher, context.task).space(), {"sparsity": 0.5}
    first = (("uniform", space.uniform(limits)),)
    searcher = Random(space, limits, Random.settings_type(), trials=12, first_plans=first, patience=0.5)
    for number, gain in enumerate((0.0, -0.3, 0.04, -0.2, -0.1, -0.2, -0.1, -0.3, -0.4)):
        assert isinstance(searcher.suggest(str(number)), dict)
        searcher.on_trial_complete(str(number), {"score": gain - 1, "standard_error": 0.05})
    assert searcher.finished()
    choice = trials.choose(spec, searcher, 5, Resources(), RunFolder(tmp_path), Observers())
    assert (choice.trial, choice.origin, choice.score, choice.rescored) == (0, "uniform", -1.0, [])
    assert choice.plan == space.uniform(limits)
    assert trials._why_given_up(searcher, str) == (
        "the search ended after 9 of 12 trials: none scored better than uniform (-1.0) by more than its standard error "
        "(0.05), so it is not expected to gain, and uniform is retrained. search.patience=1 tries all"
    )
