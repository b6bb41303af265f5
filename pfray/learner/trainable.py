"""Learner: one compression algorithm as a Ray Tune Trainable.

A subclass writes plain PyTorch functions, as static methods that know nothing of Ray: ``space`` and ``compress``, and
if it can ``prepare`` (what is worth computing once), ``error_curves``, and ``finish`` for the plan that is chosen.
``scoring.py`` scores plans with them and this base turns that into trials; ``launch.py`` calls the same functions
in the workers of a retraining.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from ray import tune
from torch import nn

from pfray.learner.context import Job
from pfray.learner.scoring import Scorer
from pfray.space import CompressionSpace, Plan
from pfray.task import Task
from pfray.training.loop import Hook


@dataclass(frozen=True)
class Step:
    """One learner of a pipeline. finetune: what its training has other than the experiment's ``finetune``."""

    name: str
    learner: type[Learner]
    settings: Any
    finetune: Mapping[str, Any]


class Learner(tune.Trainable):
    """The base of all learners. ``settings_type`` is the frozen dataclass of a learner's own settings."""

    settings_type: ClassVar[type]
    # Whether what the learner does to a model outlasts whatever is done to it afterwards, as what is gone stays gone:
    # another learner can then follow in a pipeline. Its plan may have knobs of layers that are no longer there.
    lasting: ClassVar[bool] = False
    # Whether its models start with random weights, and are nothing before they were trained.
    from_scratch: ClassVar[bool] = False

    @staticmethod
    def space(model: nn.Module, task: Task, settings: Any) -> CompressionSpace:
        """The knobs of ``model`` under this learner. Raises UnsupportedModel where there is nothing to compress."""
        raise NotImplementedError

    @staticmethod
    def prepare(model: nn.Module, task: Task, settings: Any) -> Any:
        """What ``compress`` can reuse from plan to plan (sorted magnitudes, moments); computed once per worker."""
        return None

    @staticmethod
    def compress(model: nn.Module, plan: Plan, settings: Any, cache: Any, steps: int) -> Hook | None:
        """Compress ``model`` in place.

        steps: optimizer steps of the training that follows; 0 for none, and then the plan is met at once. With
        training, the returned hook may approach the plan step by step, and must have reached it at the end. One with
        ``state_dict`` and ``load_state_dict`` has its state kept in checkpoints.
        """
        raise NotImplementedError

    @staticmethod
    def error_curves(model: nn.Module, task: Task, settings: Any) -> dict[str, np.ndarray]:
        """Of each knob, its relative error ``(G,)`` at evenly spaced positions from 0 (most compressed) to 1.

        They are what ``allocate`` adds up: 0 where nothing is lost, 1 where nothing is left of the layer. A learner
        that knows none gives none.
        """
        return {}

    @staticmethod
    def finish(model: nn.Module, teacher: nn.Module, plan: Plan, task: Task, settings: Any) -> nn.Module:
        """A copy of ``model`` compressed by ``plan`` with all the care that a search has no time for.

        For learners that can do better than ``compress`` where it may take minutes; they have ``restructure`` and
        ``stages``, too. The retraining starts from the result. model: the teacher, or what an earlier stage left of it.
        """
        raise NotImplementedError

    @staticmethod
    def restructure(model: nn.Module, plan: Plan, task: Task, settings: Any) -> nn.Module:
        """What ``finish`` would make of a copy of the teacher, but for the weights. The copy may be used up."""
        raise NotImplementedError

    @staticmethod
    def stages(plan: Plan, settings: Any) -> list[tuple[Plan, int]]:
        """(plan, epochs): milder plans, finished and trained for some epochs first, each from the one before."""
        return []

    @staticmethod
    def steps(plan: Plan, settings: Any) -> list[tuple[Step, Plan]]:
        """Of a pipeline, its learners in order, each with its own part of the plan."""
        return []

    def setup(self, config: dict[str, Any], job: Job | None = None) -> None:
        assert job is not None, "a Learner is started with tune.with_parameters(cls, job=...)"
        torch.set_num_threads(max(1, int(self._resources().get("CPU", 1))))
        self.scorer = Scorer(type(self), job, torch.device("cuda" if self._has_gpu() else "cpu"))
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One round: compress (the first time), fine-tune, measure. A failure is a result, so the search goes on."""
        started = time.perf_counter()
        result = self.scorer.step()
        last = "error" in result or self.scorer.round >= self.scorer.job.search.rounds
        self.compute_seconds += time.perf_counter() - started
        return {**result, "seconds": self.compute_seconds, "finished_at": time.time(), "done": last}

    def _begin(self, config: dict[str, Any]) -> None:
        self.scorer.begin(config["plan"])
        self.compute_seconds = 0.0

    def _has_gpu(self) -> bool:
        return self._resources().get("GPU", 0) > 0 and torch.cuda.is_available()

    def _resources(self) -> dict[str, float]:
        assert self.trial_resources is not None, "Tune sets it before setup"
        return self.trial_resources.required_resources
