"""Learner: an algorithm as a Ray Tune Trainable. One actor scores many plans; a step is one round of a trial."""

from __future__ import annotations

import time
from typing import Any

import torch
from ray import tune

from pfray.learner.scoring import Scorer, TrialSpec


class Learner(tune.Trainable):
    """Trainable around any ``Algorithm``: ``setup`` once per actor, ``reset_config`` for each further plan."""

    def setup(self, config: dict[str, Any], spec: TrialSpec | None = None) -> None:
        """``spec`` comes through ``tune.with_parameters``."""
        assert spec is not None
        torch.set_num_threads(max(1, int(self._resources().get("CPU", 1))))
        device = torch.device("cuda" if self._has_gpu() else "cpu")
        self.scorer = Scorer(spec.context, spec.recipe, spec.scoring, device)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One round: compress (first round only), fine-tune, measure. A failure is a result, so the search goes on."""
        started = time.perf_counter()
        result = self.scorer.step()
        last = "error" in result or self.scorer.round >= self.scorer.scoring.rounds
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
