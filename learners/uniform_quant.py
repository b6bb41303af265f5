"""Uniform quantization with a bit width per layer (Wu et al. 2018, PocketFlow: ``UniformQuantLearner``).

The weights of a bucket, by default an output channel, lie on 2^b evenly spaced levels
(``pfray/quantization/affine.py``). Training keeps them there by the straight-through estimator
(``pfray/quantization/straight_through.py``). Without training, AdaRound chooses the level above or below each weight
that keeps the layers' outputs (``pfray/quantization/adaround.py``): once, for the chosen plan (``finish``), because it
takes a minute or more. Trials and trainings start from the nearest levels with corrected biases.

Default differences from PocketFlow. Its range is the minimum to the maximum weight of the whole layer
(``uql_use_buckets: False``), updated in every step. Here the range has the least squared error (``range_from: mse``),
per output channel (``buckets``), and is fixed in training (``interval: 0``), so that a weight changes its level only by
training. Activation ranges are calibrated once, on ``images`` training inputs; PocketFlow takes each batch's range,
also in evaluation. ``{range_from: min_max, buckets: tensor, interval: 1}`` gives PocketFlow's weights.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from learners._bits import BitAlgorithm
from pfray.learner.base import Compressed
from pfray.nn.fx import Untraceable
from pfray.quantization import affine, bit_space
from pfray.quantization.bit_space import BitSettings, Prepared
from pfray.quantization.bn_folding import folded
from pfray.quantization.equalization import equalize
from pfray.quantization.qparams import QParams
from pfray.quantization.rounding import Effort, round_in_order
from pfray.quantization.straight_through import StraightThrough
from pfray.space import Plan
from pfray.training.batch_norm import with_better_statistics

# Iterations of AdaRound at most, and at least. Updates of single weights, about five minutes of one core.
MOST, LEAST = 1000, 200
UPDATES = 2.5e9


@dataclass(frozen=True)
class Settings(BitSettings):
    """symmetric: if True, zero is a level. interval: optimizer steps between updates of the weights' ranges in training
    (0: no updates).

    rounding: how the chosen plan's weights below 8 bits are rounded if no training follows: ``adaround`` or to the
        ``nearest`` level. positions: output positions of each of the ``images`` that AdaRound compares. iterations: of
        AdaRound for each layer; null for 1,000, or as many as the number of weights allows in about five minutes of one
        core, but at least 200.
    """

    symmetric: bool = False
    interval: Annotated[int, Field(ge=0)] = 0
    rounding: Literal["adaround", "nearest"] = "adaround"
    positions: Annotated[int, Field(ge=1)] = 32
    iterations: Annotated[int, Field(ge=1)] | None = None


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
    has_finish = True
    finish_is_final = True

    @staticmethod
    def floats_per_bucket(bits: np.ndarray) -> float:
        """Floats stored per bucket: its lowest level and the step."""
        return 2.0

    @cached_property
    def prepared(self) -> Prepared:
        return bit_space.prepare(self.model, self.task, self.settings, partial(fit_ranges, settings=self.settings))

    def finish(self, plan: Plan, start: nn.Module | None = None) -> Compressed:
        """The model of ``compress`` rounded by AdaRound, and batch norms with the better statistics.

        If torch.fx cannot trace the model, its weights stay at the nearest levels.
        """
        model = self.compress(plan).model
        names = [name for name, bits in plan.items() if bits < affine.MAX_BITS and name in self.prepared.levels]
        if self.settings.rounding == "adaround" and names:
            try:
                self._round(model, names)
            except Untraceable as error:
                logging.getLogger("pfray").warning(
                    "the weights are rounded to the nearest levels and not by AdaRound, since torch.fx cannot trace %s "
                    "(%s)",
                    type(model).__name__,
                    error,
                )
        return Compressed(with_better_statistics(model, self.task), structure=self.structure(plan))

    def _round(self, model: nn.Module, names: list[str]) -> None:
        teacher = folded(self.model, self.prepared.norms).eval()
        equalize(teacher, self.prepared.scales)
        weights = sum(teacher.get_submodule(name).get_parameter("weight").numel() for name in names)
        iterations = self.settings.iterations or round(min(MOST, max(LEAST, UPDATES / weights)))
        effort = Effort(self.settings.images, self.settings.positions, iterations, self.settings.bias_correction)
        round_in_order(teacher, model, names, self.task, effort, self.tell)


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
