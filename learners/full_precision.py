"""No compression: a model trained as it is. It makes the teacher where the experiment gives no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from pfray.learner.trainable import Learner
from pfray.space import CompressionSpace, Plan
from pfray.task import Task
from pfray.training.loop import Hook


@dataclass(frozen=True)
class Settings:
    """None are needed."""


def _no_costs(values: np.ndarray) -> dict[str, float]:
    return {}


class FullPrecision(Learner):
    settings_type = Settings

    @staticmethod
    def space(model: nn.Module, task: Task, settings: Settings) -> CompressionSpace:
        return CompressionSpace((), _no_costs)

    @staticmethod
    def compress(model: nn.Module, plan: Plan, settings: Settings, cache: Any, steps: int) -> Hook | None:
        return None
