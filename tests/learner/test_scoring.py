from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from learners.distilled import Distilled
from learners.distilled import Settings as Small
from learners.weight_sparse import WeightSparse
from pfray import bench
from pfray.config.sections import Search
from pfray.export.tflite import convert
from pfray.learner import scoring
from pfray.learner.context import Job
from pfray.learner.scoring import Scorer, is_out_of_memory
from pfray.measure.evaluation import evaluate
from pfray.objective import Objective
from pfray.task import soft_cross_entropy
from pfray.training.loop import fit
from pfray.training.settings import Training

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def job(job: Job) -> Job:
    training = Training(epochs=1, lr=0.05, warmup_epochs=0)
    return replace(job, search=Search(validation_images=200), training=training, objective=Objective("agreement"))


def uniform(job: Job, sparsity: float) -> dict[str, float]:
    return WeightSparse.space(job.teacher, job.task, job.settings).uniform({"sparsity": sparsity})


def test_a_plan_is_measured_on_the_head_of_the_validation_images_beside_the_teacher(job):
    scorer = Scorer(WeightSparse, job, CPU)
    result = scorer.score(uniform(job, 0.9))
    head = job.task.validation.head(200)
    with torch.inference_mode():
        inputs = job.task.normalize(head.inputs)
        own, teachers = scorer.model(inputs), job.teacher(inputs)
    divergence = F.kl_div(F.log_softmax(own, 1), F.log_softmax(teachers, 1), reduction="none", log_target=True).sum(1)
    measured = result["measurement"]
    assert result["score"] == measured["agreement"] == pytest.approx(-divergence.mean().item(), rel=1e-4)
    assert measured["accuracy"] == pytest.approx(evaluate(scorer.model, job.task, head).accuracy)
    p = measured["accuracy"]
    assert measured["accuracy_error"] == pytest.approx(math.sqrt(p * (1 - p) / 199), rel=1e-6)
    # Means of ten samples scatter as the samples do, divided by the root of ten.
    assert result["standard_error"] == pytest.approx((divergence.std() / math.sqrt(200)).item(), rel=0.35)


def test_the_teacher_agrees_with_itself_and_heavier_compression_agrees_less(job):
    scorer = Scorer(WeightSparse, job, CPU)
    untouched, half, most = (scorer.score(uniform(job, s))["score"] for s in (0.0001, 0.5, 0.95))
    assert untouched > half > most
    assert untouched == pytest.approx(0, abs=1e-4)


def test_the_same_plan_has_the_same_score_whatever_was_scored_before(job):
    tuned = replace(job, search=job.search.model_copy(update={"finetune_steps": 3}))
    scorer = Scorer(WeightSparse, tuned, CPU)
    first = scorer.score(uniform(job, 0.8))
    scorer.score(uniform(job, 0.5))
    assert scorer.score(uniform(job, 0.8)) == first
    assert Scorer(WeightSparse, tuned, CPU).score(uniform(job, 0.8)) == first


def test_searched_settings_reach_the_training_and_the_learner(job):
    names = ("finetune.lr", "learner.interval")
    searched = replace(job, search=job.search.model_copy(update={"finetune_steps": 20}), searched=names)
    plan = {**uniform(job, 0.8), "finetune.lr": 0.05, "learner.interval": 4.0}
    used, rest = searched.for_plan(plan)
    assert (used.training.lr, used.settings.interval, used.training.momentum) == (0.05, 4, job.training.momentum)
    assert isinstance(used.settings.interval, int)
    assert rest == uniform(job, 0.8)
    scorer = Scorer(WeightSparse, searched, CPU)
    scores = {lr: scorer.score({**plan, "finetune.lr": lr})["score"] for lr in (1e-6, 0.05)}
    assert abs(scores[0.05] - scores[1e-6]) > 0.1


def test_latency_is_measured_where_the_score_needs_it(job):
    result = Scorer(WeightSparse, replace(job, objective=Objective("ddc")), CPU).score(uniform(job, 0.8))
    assert result["measurement"]["latency_ms"] > 0
    # All of the accuracy and few parameters, but hardly faster: at 0.7 of the time R2 is 1 / (1 + e^6).
    assert 0 < result["score"] < 0.0025
    assert Scorer(WeightSparse, job, CPU).score(uniform(job, 0.8))["measurement"]["latency_ms"] is None


def test_an_architecture_is_timed_once(job):
    scorer = Scorer(WeightSparse, replace(job, objective=Objective("ddc")), CPU)
    first, other, again = (scorer.score(uniform(job, s)) for s in (0.8, 0.5, 0.8))
    # Zeros change nothing about the layers.
    assert first["measurement"]["latency_ms"] == other["measurement"]["latency_ms"]
    assert first["score"] == again["score"] != other["score"]
    assert len(scorer.latencies) == 1


def test_times_may_be_those_of_files_one_made_for_each_architecture(job, monkeypatch):
    made: list[str] = []
    timed: list[list[float]] = []
    export, latency_ms = convert.export, bench.latency_ms

    def exported(model: nn.Module, *arguments: Any) -> int:
        made.append(type(model).__name__)
        return export(model, *arguments)

    def time(paths: list[Path], **options: Any) -> list[float]:
        assert paths[0].stat().st_size < paths[1].stat().st_size  # the student's before the teacher's
        timed.append(latency_ms(paths, rounds=2))
        return timed[-1]

    monkeypatch.setattr(convert, "export", exported)
    monkeypatch.setattr(bench, "latency_ms", time)
    search = job.search.model_copy(update={"latency": "litert", "bn_images": 50})
    own = replace(job, search=search, objective=Objective("ddc"), settings=Small())
    scorer = Scorer(Distilled, own, CPU)
    first, other, again = (scorer.score({"width": width}) for width in (1 / 64, 0.0625, 1 / 64))
    assert made == ["LeNet", "VGG", "VGG"]
    assert [first["measurement"]["latency_ms"], other["measurement"]["latency_ms"]] == [own for own, _ in timed]
    assert first["measurement"]["latency_ms"] == again["measurement"]["latency_ms"]


def test_a_task_without_soft_labels_is_scored_by_its_accuracy(job):
    # One number a sample, which no softmax takes.
    task = replace(
        job.task,
        loss=lambda outputs, targets: (outputs[:, 0] - targets).square().mean(),
        score=lambda outputs, targets: ((outputs[:, 0] - targets).abs() < 3).float(),
        soft_loss=soft_cross_entropy,
    )
    scorer = Scorer(WeightSparse, replace(job, task=task, objective=Objective("accuracy")), CPU)
    measured = scorer.score(uniform(job, 0.5))["measurement"]
    assert measured["agreement"] is None
    assert measured["accuracy"] > 0


class Raising(WeightSparse):
    @staticmethod
    def compress(model: nn.Module, *arguments: object) -> None:
        raise ValueError("no such layer\nand more")


class Breaking(WeightSparse):
    @staticmethod
    def compress(model: nn.Module, *arguments: object) -> None:
        next(model.parameters()).data.fill_(float("nan"))


def test_a_failure_is_a_result(job):
    result = Scorer(Raising, job, CPU).score(uniform(job, 0.8))
    assert result["error"] == "ValueError: no such layer"
    assert math.isnan(result["score"])
    broken = Scorer(Breaking, job, CPU).score(uniform(job, 0.8))
    assert broken["error"] == "TrainingFailed: the loss on the validation images is nan"


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), MemoryError("no more"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to "
                 "allocate 1 bytes"),
]  # fmt: skip


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_a_plan_without_memory_is_tried_once_more_with_half_the_batch(job, monkeypatch, error):
    tuned = replace(job, search=job.search.model_copy(update={"finetune_steps": 2}), shrink_on_oom=True)
    sizes, most = [], 32

    def fit_what_fits(model, task, training, **more):
        sizes.append(training.batch_size)
        if training.batch_size > most:
            raise error
        return fit(model, task, training, **more)

    monkeypatch.setattr(scoring, "fit", fit_what_fits)
    scorer = Scorer(WeightSparse, tuned, CPU)
    plan = uniform(job, 0.8)
    result = scorer.score(plan)
    assert (sizes, result["halved_batch"]) == ([64, 32], True)
    half = replace(tuned, training=tuned.training.model_copy(update={"batch_size": 32}))
    assert result["score"] == Scorer(WeightSparse, half, CPU).score(plan)["score"]
    # The next plan starts with the whole batch again; where even half is too much, the trial has failed.
    sizes.clear()
    most = 16
    result = scorer.score(plan)
    assert sizes == [64, 32]
    assert math.isnan(result["score"])
    assert result["error"] == f"{type(error).__name__}: {error}"
    # Unasked for, nothing is changed.
    sizes.clear()
    result = Scorer(WeightSparse, replace(tuned, shrink_on_oom=False), CPU).score(plan)
    assert sizes == [64]
    assert math.isnan(result["score"])
    assert "halved_batch" not in result


def test_a_plan_that_runs_out_of_memory_in_a_later_round_begins_anew(job, monkeypatch):
    search = job.search.model_copy(update={"finetune_steps": 2, "rounds": 2})
    sizes = []

    def fit_once(model, task, training, **more):
        sizes.append(training.batch_size)
        if len(sizes) == 2:
            raise MemoryError
        return fit(model, task, training, **more)

    monkeypatch.setattr(scoring, "fit", fit_once)
    result = Scorer(WeightSparse, replace(job, search=search, shrink_on_oom=True), CPU).score(uniform(job, 0.8))
    assert sizes == [64, 64, 32, 32]
    assert result["halved_batch"]
    assert math.isfinite(result["score"])


def test_other_failures_are_not_taken_for_a_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
