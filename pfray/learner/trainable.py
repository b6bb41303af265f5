"""Learner: an algorithm as a Ray Tune Trainable. One actor scores many plans; a step is one round of a trial."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import GetTimeoutError, ObjectLostError, OutOfMemoryError, RayTaskError

from pfray.errors import first_line
from pfray.learner.scoring import Scorer, TrialSpec, is_out_of_memory
from pfray.utils.user_code import place_of

# Errors of Ray after which another worker may do better. After any other error of the setup none does.
PASSING = (GetTimeoutError, ObjectLostError, OutOfMemoryError, RayTaskError)


class Learner(tune.Trainable):
    """Trainable around any ``Algorithm``: ``setup`` once per actor, ``reset_config`` for each further plan."""

    def setup(self, config: dict[str, Any], spec: Sequence[ray.ObjectRef] = ()) -> None:
        """spec: the reference of a TrialSpec, which is loaded here so that a failure becomes a result with its reason.
        """
        torch.set_num_threads(max(1, int(self._resources().get("CPU", 1))))
        device = torch.device("cuda" if self._has_gpu() else "cpu")
        self.setup_error: str | None = None
        try:
            loaded: TrialSpec = ray.get(spec[0])
            self.scorer = Scorer(loaded.context, loaded.recipe, loaded.scoring, device)
        except Exception as error:
            if isinstance(error, PASSING) or is_out_of_memory(error):
                raise
            self.setup_error = why_setup_failed(error)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One round: compress (first round only), fine-tune, measure. A failure is a result, so the search goes on."""
        started = time.perf_counter()
        if self.setup_error is not None:
            return {"score": float("nan"), "setup_error": self.setup_error, "done": True}
        result = self.scorer.step()
        last = "error" in result or self.scorer.round >= self.scorer.scoring.rounds
        self.compute_seconds += time.perf_counter() - started
        return {**result, "seconds": self.compute_seconds, "finished_at": time.time(), "done": last}

    def _begin(self, config: dict[str, Any]) -> None:
        if self.setup_error is None:
            self.scorer.begin(config["plan"])
        self.compute_seconds = 0.0

    def _has_gpu(self) -> bool:
        return self._resources().get("GPU", 0) > 0 and torch.cuda.is_available()

    def _resources(self) -> dict[str, float]:
        assert self.trial_resources is not None, "Tune sets it before setup"
        return self.trial_resources.required_resources


def why_setup_failed(error: Exception) -> str:
    """The reason in one line with its remedy. Ray gives an error of unpickling as its text only."""
    if missing := re.search(r"No module named '([^']+)'", str(error)):
        return (
            f"a worker of Ray cannot import the module '{missing[1]}'. Remedy: install it where the workers run, or "
            "name its folder in PYTHONPATH before Ray starts"
        )
    reason = first_line(error).removeprefix("System error: ").rstrip(".")
    return (
        f"a worker of Ray cannot load what a trial needs ({type(error).__name__}: {reason}{place_of(error)}). Remedy: "
        "mend the cause; on a cluster, the same code on all machines"
    )
