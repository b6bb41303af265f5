"""Trials that sleep instead of compute, for what is measured of everything around them."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import nn

from learners import weight_sparse
from pfray.space import Plan
from pfray.training.loop import Hook


@dataclass(frozen=True)
class Settings(weight_sparse.Settings):
    """seconds: that ``compress`` sleeps."""

    seconds: float = 1.0


class Drowsy(weight_sparse.WeightSparse):
    """weight_sparse that sleeps first."""

    settings_type = Settings

    @staticmethod
    def compress(model: nn.Module, plan: Plan, settings: Any, cache: Any, steps: int) -> Hook:
        time.sleep(settings.seconds)
        return weight_sparse.WeightSparse.compress(model, plan, settings, cache, steps)
