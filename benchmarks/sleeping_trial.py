"""A trial that sleeps, without torch, so that 64 of them fit on a small machine."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from ray import tune


class Sleeping(tune.Trainable):
    """context: ``seconds`` that a trial takes in the mean, ``parallel`` trials at once, ``folder`` where workers meet.

    The first trial of each worker waits until all have started, however long that takes on a busy machine.
    """

    def setup(
        self, config: dict[str, Any], context: dict[str, Any] | None = None, recipe: Any = None, scoring: None = None
    ) -> None:
        assert context is not None
        self.seconds, self.number = context["seconds"], config["trial"]
        (Path(context["folder"]) / str(self.number)).touch()
        while len(list(Path(context["folder"]).iterdir())) < context["parallel"]:
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
