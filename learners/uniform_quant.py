"""Uniform quantization with a bit width per layer (Wu et al. 2018, PocketFlow: ``UniformQuantLearner``).

The weights of a bucket, by default an output channel, lie on 2^b evenly spaced levels
(``pfray/quantization/affine.py``). Training keeps them there by the straight-through estimator
(``pfray/quantization/straight_through.py``).

Default differences from PocketFlow. Its range is the minimum to the maximum weight of the whole layer
(``uql_use_buckets: False``), updated in every step. Here the range has the least squared error (``range_from: mse``),
per output channel (``buckets``), and is fixed in training (``interval: 0``), so that a weight changes its level only by
training. Activation ranges are calibrated once, on ``images`` training inputs; PocketFlow takes each batch's range,
also in evaluation. ``{range_from: min_max, buckets: tensor, interval: 1}`` gives PocketFlow's weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from learners._bits import BitAlgorithm
from pfray.quantization import affine, bit_space
from pfray.quantization.bit_space import BitSettings, Prepared
from pfray.quantization.qparams import QParams
from pfray.quantization.straight_through import StraightThrough


@dataclass(frozen=True)
class Settings(BitSettings):
    """symmetric: if True, zero is a level. interval: optimizer steps between updates of the weights' ranges in training
    (0: no updates)."""

    symmetric: bool = False
    interval: Annotated[int, Field(ge=0)] = 0


class MovingRanges(StraightThrough):
    """Straight-through training that recomputes the ranges from the latent weights every ``interval`` steps."""

    def __init__(self, layers: dict[str, nn.Module], latents: dict[str, Tensor], settings: Settings) -> None:
        super().__init__(layers, latents)
        self.settings = settings

    def moved(self, name: str, change: Tensor, step: int) -> Tensor:
        interval, layer = self.settings.interval, self.layers[name]
        if interval and step % interval == 0:
            low: Any = layer.get_buffer("weight_low")
            found = fit_ranges(self.latents[name] + change, self.qparams(name).bits, len(low), settings=self.settings)
            assert found.low is not None
            assert found.step is not None
            low.copy_(found.low)
            layer.get_buffer("weight_step").copy_(found.step)
        return super().moved(name, change, step)


class UniformQuant(BitAlgorithm):
    settings: Settings
    settings_type = Settings
    hook_type = MovingRanges

    @staticmethod
    def floats_per_bucket(bits: np.ndarray) -> float:
        """Floats stored per bucket: its lowest level and the step."""
        return 2.0

    @cached_property
    def prepared(self) -> Prepared:
        return bit_space.prepare(self.model, self.task, self.settings, partial(fit_ranges, settings=self.settings))


def fit_ranges(weight: Tensor, bits: int, count: int, *, settings: Settings) -> QParams:
    """Ranges of a weight in ``count`` buckets, by the settings' ``range_from``."""
    low, step = affine.fit(
        weight,
        bits,
        count,
        symmetric=settings.symmetric,
        method=settings.range_from,
        percentile=settings.percentile,
    )
    return QParams(bits, low, step)
