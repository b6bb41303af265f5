"""A trial that sleeps, without torch, so that 64 of them fit on a small machine."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune


@dataclass(frozen=True)
class SleepingJob:
    """seconds: of a trial in the mean. parallel: trials at once. folder: where workers meet. search: settings."""

    seconds: float
    parallel: int
    folder: str
    search: Any


class Sleeping(tune.Trainable):
    """The first trial of each worker waits until all have started, however long that takes on a busy machine."""

    def setup(self, config: dict[str, Any], job: SleepingJob | None = None) -> None:
        assert job is not None
        self.job, self.number = job, config["trial"]
        (Path(job.folder) / str(self.number)).touch()
        while len(list(Path(job.folder).iterdir())) < job.parallel:
            time.sleep(0.5)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.number = new_config["trial"]
        return True

    def step(self) -> dict[str, Any]:
        began = time.time()
        # Of different lengths, as trials are, so that they do not end all at once; the same ones in every run.
        time.sleep(self.job.seconds * random.Random(self.number).uniform(0.5, 1.5))
        ended = time.time()
        return {"score": 0.0, "standard_error": 0.0, "seconds": ended - began, "finished_at": ended, "done": True}
