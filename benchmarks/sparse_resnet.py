"""The search problem shared by several benchmarks: a CIFAR ResNet with 90 % sparsity, scored without fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.result import DATA

SPARSITY = 0.9
LIMITS = {"sparsity": SPARSITY}


def needed(model: str) -> list[Path]:
    """The files without which nothing can be measured."""
    return [DATA / "cifar10-jpeg", DATA / "weights" / f"{model}.pt"]


@dataclass(frozen=True)
class Job:
    """Context, Recipe and Scoring of the trials."""

    context: Any
    recipe: Any
    scoring: Any

    @property
    def task(self) -> Any:
        return self.context.task

    @property
    def teacher(self) -> Any:
        return self.context.teacher

    def bind(self) -> Any:
        """The algorithm, bound to the teacher. Nothing is computed yet."""
        return self.recipe.algorithm(self.teacher, self.task, self.recipe.settings)

    def scorer(self, **changed: Any) -> Any:
        """A Scorer on the CPU. changed: fields of ``scoring``."""
        import torch

        from pfray.learner.scoring import Scorer

        return Scorer(self.context, self.recipe, replace(self.scoring, **changed), torch.device("cpu"))


def scoring_of(search: Any, objective: Any) -> Any:
    """Scoring by the ``search`` section of an experiment, as ``trials.run_trials`` makes it."""
    from pfray.learner.scoring import Scoring

    images = {"bn_images": search.bn_images, "validation_images": search.validation_images}
    return Scoring(objective, search.rounds, search.finetune_steps or 0, latency=search.latency, **images)


@lru_cache
def job(model: str = "resnet20") -> Any:
    """The job of a trial with pfray's own settings and its default score."""
    from learners.weight_sparse import Settings, WeightSparse
    from pfray.config.sections import Search
    from pfray.data.cifar10 import build
    from pfray.learner.context import Context, Recipe
    from pfray.models import resnet
    from pfray.nn.weights import load_weights
    from pfray.objective import Objective
    from pfray.training.settings import Training

    task = build(path=str(DATA / "cifar10-jpeg"))
    teacher = getattr(resnet, model)(num_outputs=task.num_outputs)
    load_weights(teacher, DATA / "weights" / f"{model}.pt")
    training = Training(epochs=3, lr=0.05, batch_size=128, warmup_epochs=0)
    recipe = Recipe(WeightSparse, Settings(), training)
    return Job(Context(task, teacher, 0, "auto"), recipe, scoring_of(Search(), Objective("agreement")))


def space(job: Any) -> Any:
    from pfray.nn.layer_shapes import with_layer_shapes
    from pfray.task import example_input

    return with_layer_shapes(job.bind().space(), job.teacher, example_input(job.task))


def first_plans(job: Any, searcher: type) -> tuple[tuple[str, dict[str, float]], ...]:
    """The plans that ``searcher`` is given first, of those that need no search."""
    from pfray.workflow import baselines

    return baselines.first_plans(plans_without_search(job), searcher)


def plans_without_search(job: Any) -> dict[str, dict[str, float]]:
    """allocate, uniform, heuristic."""
    from pfray.workflow import baselines

    return baselines.plans_without_search(space(job), LIMITS, job.bind().error_curves())
