"""Bit-width learners: their common knobs and costs, error curves, and training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from typing import ClassVar

import numpy as np

from pfray.learner.base import Algorithm, Compressed
from pfray.quantization import bit_space
from pfray.quantization.bit_space import BitSettings, Prepared
from pfray.space import CompressionSpace, Plan
from pfray.training.hooks import Hook


class BitAlgorithm(Algorithm):
    """Base of the learners that give each layer its own bits. Each adds the levels, and how a training moves them.

    hook_type(layers, their float weights, settings): keeps the weights quantized in a training.
    """

    settings: BitSettings
    hook_type: ClassVar[Callable[..., Hook]]
    has_error_curves = True
    has_rungs = True

    @staticmethod
    @abstractmethod
    def floats_per_bucket(bits: np.ndarray) -> np.ndarray | float:
        """Floats stored per bucket, by the bits of its weights."""

    @cached_property
    @abstractmethod
    def prepared(self) -> Prepared:
        """Levels of every layer for every number of bits."""

    def space(self) -> CompressionSpace:
        """One knob, the bits, per convolution and linear layer except the first and the last; cost ``bits``."""
        return bit_space.bit_space(self.model, self.task, self.settings, self.floats_per_bucket)

    def error_curves(self) -> dict[str, np.ndarray]:
        return self.prepared.error_curves(self.model, self.task)

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """Quantizes the weights immediately; in training the hook keeps them quantized."""
        hook = partial(self.hook_type, settings=self.settings)
        return Compressed(*bit_space.compress(self.model, plan, self.settings, self.prepared, steps, hook))
