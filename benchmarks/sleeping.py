"""Trials that sleep instead of compute, for measuring everything around them."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from learners import weight_sparse
from pfray.learner.base import Compressed
from pfray.space import Plan


@dataclass(frozen=True)
class Settings(weight_sparse.Settings):
    """seconds: that ``compress`` sleeps."""

    seconds: float = 1.0


class Drowsy(weight_sparse.WeightSparse):
    """weight_sparse that sleeps first."""

    settings: Settings
    settings_type = Settings

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        time.sleep(self.settings.seconds)
        return super().compress(plan, steps)
