"""No compression: trains the model itself. It makes the teacher if the experiment gives no weights."""

from __future__ import annotations

import copy

import numpy as np

from pfray.learner.base import Algorithm, Compressed
from pfray.space import CompressionSpace, Plan


class FullPrecision(Algorithm):
    def space(self) -> CompressionSpace:
        return CompressionSpace((), _no_costs)

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        return Compressed(copy.deepcopy(self.model))


def _no_costs(values: np.ndarray) -> dict[str, float]:
    return {}
