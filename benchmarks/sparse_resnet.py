"""What several benchmarks measure on: a CIFAR ResNet with 90 % of its weights gone, scored without fine-tuning."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.result import DATA

SPARSITY = 0.9
LIMITS = {"sparsity": SPARSITY}


def needed(model: str) -> list[Path]:
    """The files without which nothing can be measured."""
    return [DATA / "cifar10-jpeg", DATA / "weights" / f"{model}.pt"]


@lru_cache
def job(model: str = "resnet20") -> Any:
    """The job of a trial with pfray's own settings and its default score."""
    from learners.weight_sparse import Settings
    from pfray.config.sections import Search
    from pfray.data.cifar10 import build
    from pfray.learner.context import Job
    from pfray.models import resnet
    from pfray.nn.weights import load_weights
    from pfray.objective import Objective
    from pfray.training.settings import Distill, Training

    task = build(path=str(DATA / "cifar10-jpeg"))
    teacher = getattr(resnet, model)(num_outputs=task.num_outputs)
    load_weights(teacher, DATA / "weights" / f"{model}.pt")
    training = Training(epochs=3, lr=0.05, batch_size=128, warmup_epochs=0)
    return Job(task, teacher, Settings(), training, Distill(), Search(), 0, "auto", Objective("agreement"))


def space(job: Any) -> Any:
    from learners.weight_sparse import WeightSparse
    from pfray.nn.layer_shapes import with_layer_shapes
    from pfray.task import example_input

    found = WeightSparse.space(job.teacher, job.task, job.settings)
    return with_layer_shapes(found, job.teacher, example_input(job.task))


def first_plans(job: Any, searcher: type) -> tuple[tuple[str, dict[str, float]], ...]:
    """The plans that ``searcher`` is given first, of those that need no search."""
    from pfray.workflow import baselines

    return baselines.first_plans(plans_without_search(job), searcher)


def plans_without_search(job: Any) -> dict[str, dict[str, float]]:
    """allocate, uniform, heuristic."""
    from learners.weight_sparse import WeightSparse
    from pfray.workflow import baselines

    curves = WeightSparse.error_curves(job.teacher, job.task, job.settings)
    return baselines.plans_without_search(space(job), LIMITS, curves)
