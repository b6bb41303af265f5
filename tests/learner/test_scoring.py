from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from learners.distilled import Distilled
from learners.distilled import Settings as Small
from learners.weight_sparse import WeightSparse
from pfray import bench
from pfray.data._loaders import streamed
from pfray.export.tflite import convert
from pfray.learner import scoring
from pfray.learner.base import Compressed
from pfray.learner.context import Context, Recipe
from pfray.learner.scoring import Scorer, Scoring, is_out_of_memory
from pfray.measure.evaluation import evaluate
from pfray.objective import Objective
from pfray.space import Plan
from pfray.task import soft_cross_entropy
from pfray.training.loop import fit
from pfray.training.settings import Finetune, Training

CPU = torch.device("cpu")
AGREEMENT = Scoring(Objective("agreement"), validation_images=200)


@pytest.fixture(scope="module")
def recipe(recipe: Recipe) -> Recipe:
    return replace(recipe, training=Training(epochs=1, lr=0.05, warmup_epochs=0))


def uniform(context: Context, sparsity: float) -> Plan:
    return WeightSparse(context.teacher, context.task).space().uniform({"sparsity": sparsity})


def test_a_plan_is_measured_on_the_head_of_the_validation_images_beside_the_teacher(context, recipe):
    scorer = Scorer(context, recipe, AGREEMENT, CPU)
    result = scorer.score(uniform(context, 0.9))
    head = context.task.validation.head(200)
    with torch.inference_mode():
        inputs = context.task.normalize(head.inputs)
        own, teachers = scorer.compressed.model(inputs), context.teacher(inputs)
    divergence = F.kl_div(F.log_softmax(own, 1), F.log_softmax(teachers, 1), reduction="none", log_target=True).sum(1)
    measured = result["measurement"]
    assert result["score"] == measured["agreement"] == pytest.approx(-divergence.mean().item(), rel=1e-4)
    assert measured["accuracy"] == pytest.approx(evaluate(scorer.compressed.model, context.task, head).accuracy)
    p = measured["accuracy"]
    assert measured["accuracy_error"] == pytest.approx(math.sqrt(p * (1 - p) / 199), rel=1e-6)
    # Means of ten samples scatter as the samples do, divided by the root of ten.
    assert result["standard_error"] == pytest.approx((divergence.std() / math.sqrt(200)).item(), rel=0.35)


def test_the_teacher_agrees_with_itself_and_heavier_compression_agrees_less(context, recipe):
    scorer = Scorer(context, recipe, AGREEMENT, CPU)
    untouched, half, most = (scorer.score(uniform(context, s))["score"] for s in (0.0001, 0.5, 0.95))
    assert untouched > half > most
    assert untouched == pytest.approx(0, abs=1e-4)


def test_the_same_plan_has_the_same_score_whatever_was_scored_before(context, recipe):
    tuned = replace(AGREEMENT, finetune_steps=3)
    scorer = Scorer(context, recipe, tuned, CPU)
    first = scorer.score(uniform(context, 0.8))
    scorer.score(uniform(context, 0.5))
    assert scorer.score(uniform(context, 0.8)) == first
    assert Scorer(context, recipe, tuned, CPU).score(uniform(context, 0.8)) == first


def test_searched_settings_reach_the_training_and_the_learner(context, recipe):
    searched = replace(recipe, searched=("finetune.lr", "learner.interval"))
    plan = {**uniform(context, 0.8), "finetune.lr": 0.05, "learner.interval": 4.0}
    used = searched.candidate(plan)
    assert (used.training.lr, used.settings.interval, used.training.momentum) == (0.05, 4, recipe.training.momentum)
    assert isinstance(used.settings.interval, int)
    assert used.plan == uniform(context, 0.8)
    assert used.chosen == {"finetune.lr": 0.05, "learner.interval": 4.0}
    scorer = Scorer(context, searched, replace(AGREEMENT, finetune_steps=20), CPU)
    scores = {lr: scorer.score({**plan, "finetune.lr": lr})["score"] for lr in (1e-6, 0.05)}
    assert abs(scores[0.05] - scores[1e-6]) > 0.1


@pytest.mark.parametrize("steps", [0, 2])
def test_batch_norms_get_the_statistics_of_augmented_images_after_steps_on_such_images(context, recipe, steps):
    augmented: list[int] = []

    def augment(images: Tensor, _: torch.Generator) -> Tensor:
        augmented.append(len(images))
        return images + 100

    shape = context.task.train.inputs.shape[1:]
    model = nn.Sequential(nn.BatchNorm2d(shape[0]), nn.Flatten(), nn.Linear(math.prod(shape), 10))
    changed = Context(replace(context.task, augment=augment), model.eval())
    training = Training(epochs=1, batch_size=10, lr=0.01)
    scoring = replace(AGREEMENT, finetune_steps=steps, bn_images=40)
    scorer = Scorer(changed, replace(recipe, training=training), scoring, CPU)
    assert "error" not in scorer.score(uniform(changed, 0.5))
    assert sum(augmented) == (2 * 10 + 40 if steps else 0)
    seen = changed.task.normalize(changed.task.train.inputs + (100 if steps else 0))
    assert scorer.compressed.model[0].running_mean.item() == pytest.approx(seen.mean().item(), abs=0.05)


def test_the_steps_of_every_round_end_at_a_learning_rate_of_zero_and_without_an_average(context, recipe, monkeypatch):
    rates: list[float] = []
    step = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    training = Finetune(lr=0.08, warmup_epochs=0, schedule="linear", average="ema")
    scorer = Scorer(
        context, replace(recipe, training=training), replace(AGREEMENT, rounds=2, finetune_steps=4), CPU
    )  # fmt: skip
    scorer.begin(uniform(context, 0.5))
    weights = []
    for _ in range(2):  # what ASHA compares after each round has been annealed
        assert "error" not in scorer.step()
        weights.append(copy.deepcopy(scorer.compressed.model.fc2.weight))
    assert rates == pytest.approx([0.08, 0.06, 0.04, 0.02] * 2)
    rates.clear()
    unaveraged = training.model_copy(update={"average": "none"})
    again = Scorer(context, replace(recipe, training=unaveraged), scorer.scoring, CPU)
    again.begin(uniform(context, 0.5))
    for expected in weights:
        again.step()
        assert torch.equal(again.compressed.model.fc2.weight, expected)


def test_latency_is_measured_where_the_score_needs_it(context, recipe):
    timed = replace(AGREEMENT, objective=Objective("ddc"))
    result = Scorer(context, recipe, timed, CPU).score(uniform(context, 0.8))
    assert result["measurement"]["latency_ms"] > 0
    # All of the accuracy and few parameters, but hardly faster: at 0.7 of the time R2 is 1 / (1 + e^6).
    assert 0 < result["score"] < 0.0025
    untimed = Scorer(context, recipe, AGREEMENT, CPU).score(uniform(context, 0.8))
    assert untimed["measurement"]["latency_ms"] is None


def test_an_architecture_is_timed_once(context, recipe):
    scorer = Scorer(context, recipe, replace(AGREEMENT, objective=Objective("ddc")), CPU)
    first, other, again = (scorer.score(uniform(context, s)) for s in (0.8, 0.5, 0.8))
    # Zeros change nothing about the layers.
    assert first["measurement"]["latency_ms"] == other["measurement"]["latency_ms"]
    assert first["score"] == again["score"] != other["score"]
    assert len(scorer.latencies) == 1


def test_times_may_be_those_of_files_one_made_for_each_architecture(context, recipe, monkeypatch):
    made: list[str] = []
    timed: list[list[float]] = []
    export, latency_ms = convert.export, bench.latency_ms

    def exported(model: nn.Module, *arguments: Any) -> int:
        made.append(type(model).__name__)
        return export(model, *arguments)

    def time(paths: list[Path], **options: Any) -> list[float]:
        assert paths[0].stat().st_size < paths[1].stat().st_size  # the student's before the teacher's
        timed.append(latency_ms(paths, rounds=2, **options))
        return timed[-1]

    monkeypatch.setattr(convert, "export", exported)
    monkeypatch.setattr(bench, "latency_ms", time)
    timing = replace(AGREEMENT, objective=Objective("ddc"), latency="litert", bn_images=50)
    scorer = Scorer(context, Recipe(Distilled, Small(), recipe.training), timing, CPU)
    first, other, again = (scorer.score({"width": width}) for width in (1 / 64, 0.0625, 1 / 64))
    assert made.count("VGG") == 2
    assert made.count("LeNet") <= 1  # none if the cache has it
    assert [first["measurement"]["latency_ms"], other["measurement"]["latency_ms"]] == [own for own, _ in timed]
    assert first["measurement"]["latency_ms"] == again["measurement"]["latency_ms"]


def test_a_task_without_soft_labels_is_scored_by_its_accuracy(context, recipe):
    # One number a sample, which no softmax takes.
    task = replace(
        context.task,
        loss=lambda outputs, targets: (outputs[:, 0] - targets).square().mean(),
        score=lambda outputs, targets: ((outputs[:, 0] - targets).abs() < 3).float(),
        soft_loss=soft_cross_entropy,
    )
    by_accuracy = replace(AGREEMENT, objective=Objective("accuracy"))
    scorer = Scorer(replace(context, task=task), recipe, by_accuracy, CPU)
    measured = scorer.score(uniform(context, 0.5))["measurement"]
    assert measured["agreement"] is None
    assert measured["accuracy"] > 0


class Raising(WeightSparse):
    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        raise ValueError("no such layer\nand more")


class Breaking(WeightSparse):
    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        result = super().compress(plan, steps)
        next(result.model.parameters()).data.fill_(float("nan"))
        return result


def test_a_failure_is_a_result_with_the_line_of_ones_own_code(context, recipe):
    result = Scorer(context, replace(recipe, algorithm=Raising), AGREEMENT, CPU).score(uniform(context, 0.8))
    line = Raising.compress.__code__.co_firstlineno + 1
    assert result["error"] == f"ValueError: no such layer ({__file__}, line {line})"
    assert math.isnan(result["score"])
    broken = Scorer(context, replace(recipe, algorithm=Breaking), AGREEMENT, CPU).score(uniform(context, 0.8))
    assert broken["error"] == "TrainingFailed: the loss on the validation images is nan"


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), MemoryError("no more"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to "
                 "allocate 1 bytes"),
]  # fmt: skip


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_a_plan_without_memory_is_tried_once_more_with_half_the_batch(context, recipe, monkeypatch, error):
    tuned = replace(AGREEMENT, finetune_steps=2, shrink_on_oom=True)
    sizes, most = [], 32

    def fit_what_fits(model, task, training, **more):
        sizes.append(training.batch_size)
        if training.batch_size > most:
            raise error
        return fit(model, task, training, **more)

    monkeypatch.setattr(scoring, "fit", fit_what_fits)
    scorer = Scorer(context, recipe, tuned, CPU)
    plan = uniform(context, 0.8)
    result = scorer.score(plan)
    assert (sizes, result["halved_batch"]) == ([64, 32], True)
    half = replace(recipe, training=recipe.training.model_copy(update={"batch_size": 32}))
    assert result["score"] == Scorer(context, half, tuned, CPU).score(plan)["score"]
    # The next plan starts with the whole batch again; where even half is too much, the trial has failed.
    sizes.clear()
    most = 16
    result = scorer.score(plan)
    assert sizes == [64, 32]
    assert math.isnan(result["score"])
    assert result["error"].startswith(f"{type(error).__name__}: {error} ({__file__}, line ")
    # Unasked for, nothing is changed.
    sizes.clear()
    result = Scorer(context, recipe, replace(tuned, shrink_on_oom=False), CPU).score(plan)
    assert sizes == [64]
    assert math.isnan(result["score"])
    assert "halved_batch" not in result


def test_a_plan_that_runs_out_of_memory_in_a_later_round_begins_anew(context, recipe, monkeypatch):
    twice = replace(AGREEMENT, finetune_steps=2, rounds=2, shrink_on_oom=True)
    sizes = []

    def fit_once(model, task, training, **more):
        sizes.append(training.batch_size)
        if len(sizes) == 2:
            raise MemoryError
        return fit(model, task, training, **more)

    monkeypatch.setattr(scoring, "fit", fit_once)
    result = Scorer(context, recipe, twice, CPU).score(uniform(context, 0.8))
    assert sizes == [64, 64, 32, 32]
    assert result["halved_batch"]
    assert math.isfinite(result["score"])


def test_other_failures_are_not_taken_for_a_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


class Unreadable(list):
    def __getitem__(self, index):
        raise FileNotFoundError("no such image")


def test_data_that_a_worker_cannot_read_are_a_result_with_the_reason(context, recipe):
    unreadable = streamed("validation", DataLoader(Unreadable([0] * 9)), tuple, 0, default_collate)
    task = copy.copy(context.task)
    object.__setattr__(task, "validation", unreadable)
    result = Scorer(replace(context, task=task), recipe, AGREEMENT, CPU).score(uniform(context, 0.8))
    assert result["error"].startswith("DataError: the validation data cannot be read: FileNotFoundError: no such image")
    assert math.isnan(result["score"])
