"""A trial that sleeps, without torch, so that 64 of them fit on a small machine."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune


@dataclass(frozen=True)
class SleepingSpec:
    """seconds: of a trial in the mean. parallel: trials at once. folder: where workers meet.

    recipe, scoring: the fields of a TrialSpec that ``run_trials`` reads. Workers unpickle nothing that imports torch.
    """

    seconds: float
    parallel: int
    folder: str
    recipe: Any = field(default_factory=lambda: SimpleNamespace(algorithm=Sleeping))
    scoring: Any = field(default_factory=lambda: SimpleNamespace(rounds=1))


class Sleeping(tune.Trainable):
    """The first trial of each worker waits until all have started, however long that takes on a busy machine."""

    def setup(self, config: dict[str, Any], spec: Sequence[ray.ObjectRef] = ()) -> None:
        """spec: the reference of a SleepingSpec, as ``Learner`` gets one."""
        loaded: SleepingSpec = ray.get(spec[0])
        self.seconds, self.number = loaded.seconds, config["trial"]
        (Path(loaded.folder) / str(self.number)).touch()
        while len(list(Path(loaded.folder).iterdir())) < loaded.parallel:
            time.sleep(0.5)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.number = new_config["trial"]
        return True

    def step(self) -> dict[str, Any]:
        began = time.time()
        # Of different lengths, as trials are, so that they do not end all at once; the same ones in every run.
        time.sleep(self.seconds * random.Random(self.number).uniform(0.5, 1.5))
        ended = time.time()
        return {"score": 0.0, "standard_error": 0.0, "seconds": ended - began, "finished_at": ended, "done": True}
