"""Learner: one compression algorithm as a Ray Tune Trainable.

A subclass writes plain PyTorch functions, as static methods that know nothing of Ray (``space`` and ``compress``, and
``prepare`` for what is worth computing once). This base turns them into trials; ``distributed.py`` calls the same
functions in the workers of a retraining.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from ray import tune
from torch import nn

from pfray import objective
from pfray.config import Distill, Search, Training
from pfray.errors import TrainingFailed, first_line
from pfray.measure import Measurement, example_input, measure, place, total_macs
from pfray.space import CompressionSpace, Plan
from pfray.task import Task
from pfray.train import Hook, choose_precision, fit, reestimate_batch_norm


@dataclass(frozen=True)
class Job:
    """What every worker of a run needs: put into Ray's object store once, read by all.

    teacher: the uncompressed model, on the CPU. settings: the learner's own ``Settings``.
    """

    task: Task
    teacher: nn.Module
    settings: Any
    training: Training
    distill: Distill
    search: Search
    seed: int
    precision: str


class Learner(tune.Trainable):
    """The base of all learners. ``settings_type`` is the frozen dataclass of a learner's own settings."""

    settings_type: ClassVar[type]

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
        training, the returned hook may approach the plan step by step, and must have reached it at the end.
        """
        raise NotImplementedError

    def setup(self, config: dict[str, Any], job: Job | None = None) -> None:
        assert job is not None, "a Learner is started with tune.with_parameters(cls, job=...)"
        self.job = job
        torch.set_num_threads(max(1, int(self._resources().get("CPU", 1))))
        self.device = torch.device("cuda" if self._has_gpu() else "cpu")
        self.teacher = place(job.teacher, self.device)
        self.validation = job.task.validation.head(job.search.validation_images)
        self.prepared = False
        self.precision = choose_precision(self.teacher, self.device, job.precision)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One round: compress (the first time), fine-tune, measure. A failure is a result, so the search goes on."""
        started = time.perf_counter()
        self.round += 1
        try:
            measurement = self._round()
            # A model of NaNs still has an accuracy, that of always guessing the first class.
            if not math.isfinite(measurement.loss):
                raise TrainingFailed(f"the loss on the validation images is {measurement.loss}")
            result = {"score": objective.accuracy(measurement), "measurement": measurement.to_dict()}
        except Exception as error:
            result = {"score": float("nan"), "error": f"{type(error).__name__}: {first_line(error)}"}
        last = "error" in result or self.round >= self.job.search.rounds
        self.compute_seconds += time.perf_counter() - started
        return {**result, "seconds": self.compute_seconds, "finished_at": time.time(), "done": last}

    def _begin(self, config: dict[str, Any]) -> None:
        self.plan: Plan = config["plan"]
        self.round = 0
        self.compute_seconds = 0.0

    def _round(self) -> Measurement:
        if not self.prepared:
            # Here and not in setup, so that a learner that fails at it gives a result with the reason.
            self.cache = self.prepare(self.teacher, self.job.task, self.job.settings)
            self.prepared = True
        torch.manual_seed(self.job.seed)  # for models with random layers of their own
        search, steps = self.job.search, self.job.search.finetune_steps
        if self.round == 1:
            self.model = copy.deepcopy(self.teacher)
            self.hook = self.compress(self.model, self.plan, self.job.settings, self.cache, steps)
            self.macs = total_macs(self.model, example_input(self.job.task, self.device))
        if steps:
            hook, done = self.hook, (self.round - 1) * steps
            fit(
                self.model,
                self.job.task,
                self.job.training,
                seed=self.job.seed + self.round,
                precision=self.precision,
                teacher=self.teacher,
                distill=self.job.distill,
                # Later rounds go on counting, so that a schedule that has ended does not start again.
                hook=hook and (lambda step: hook(done + step)),
                steps=steps,
            )
        reestimate_batch_norm(self.model, self.job.task, search.bn_images, self.precision)
        return measure(self.model, self.job.task, self.validation, self.precision, self.macs)

    def _has_gpu(self) -> bool:
        return self._resources().get("GPU", 0) > 0 and torch.cuda.is_available()

    def _resources(self) -> dict[str, float]:
        assert self.trial_resources is not None, "Tune sets it before setup"
        return self.trial_resources.required_resources
