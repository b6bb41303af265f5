"""A learner that breaks where a test tells it to, once: so tests reach the faults of a real run without waiting."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from learners import weight_sparse
from pfray.learner.base import Compressed
from pfray.space import Plan


@dataclass(frozen=True)
class Settings(weight_sparse.Settings):
    """fault: what happens. stage: ``search`` or ``training``. at: in which call of compress (search), or after which
    step (training). counter: a file that counts, so that a fault comes once. release: the file that ends ``wait``."""

    fault: str = ""
    stage: str = "search"
    at: int = 1
    counter: str = ""
    release: str = ""


class Faulty(weight_sparse.WeightSparse):
    settings: Settings
    settings_type = Settings

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        settings, result = self.settings, super().compress(plan, steps)
        model, hook = result.model, result.hook
        if settings.stage == "search":
            if steps == 0 and _count(settings) == settings.at:
                _strike(settings, model)
            return result
        if steps == 0:
            return result
        assert hook is not None

        def strike_after(step: int) -> None:
            hook(step)
            if step == settings.at and not Path(settings.counter).exists():
                _count(settings)
                _strike(settings, model)

        return Compressed(model, strike_after)


class AlwaysBroken(weight_sparse.WeightSparse):
    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        raise ValueError("always broken")


class Unprepared(weight_sparse.WeightSparse):
    @cached_property
    def magnitude_order(self) -> dict[str, Tensor]:
        raise ValueError("no moments")


def _count(settings: Settings) -> int:
    with open(settings.counter, "ab") as file:
        file.write(b".")
    return os.path.getsize(settings.counter)


def _driver(settings: Settings) -> int:
    """The process that a test has started the run in, which left its number."""
    return int(Path(f"{settings.counter}.driver").read_text())


def _strike(settings: Settings, model: nn.Module) -> None:
    fault = settings.fault
    if fault == "wait":
        deadline = time.monotonic() + 300
        while not Path(settings.release).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    if fault == "raise":
        raise RuntimeError("a layer <of this plan> broke")
    if fault == "nan":
        next(model.parameters()).data.fill_(float("nan"))
    if fault == "worker":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "node":
        os.kill(os.getppid(), signal.SIGKILL)  # the raylet that started this worker
    if fault == "driver":
        os.kill(_driver(settings), signal.SIGKILL)
    if fault == "interrupt":
        os.kill(_driver(settings), signal.SIGINT)
    if fault == "terminate":
        os.kill(_driver(settings), signal.SIGTERM)
