"""Codebooks with a number of bits for each layer (Han et al. 2016; PocketFlow's ``NonUniformQuantLearner``).

The weights of a bucket, by default a whole layer, share 2^b values (``pfray/quantization/codebook.py``). In training
the weights,
the codewords or both move: a weight keeps a latent float value and shows the nearest codeword, and a codeword moves by
what all of its weights would move by together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from pfray.learner.trainable import Learner
from pfray.quantization import bit_space, codebook
from pfray.quantization.bit_space import BitSettings, Prepared
from pfray.quantization.codebook import Codebook
from pfray.quantization.delayed_start import with_delays
from pfray.quantization.granularity import Buckets
from pfray.quantization.qparams import QParams
from pfray.quantization.straight_through import StraightThrough
from pfray.space import CompressionSpace, Plan
from pfray.task import Task
from pfray.training.loop import Hook


@dataclass(frozen=True)
class Settings(BitSettings):
    """codebook: where the codewords start: the least squared error (``kmeans``), that of each weight weighed by what it
        matters to the predictions (``weighted``; the square root of its Fisher information), as many weights to each
        (``quantile``), or evenly spaced (``uniform``).
    tune: what training moves: ``weights`` from codeword to codeword, ``clusters``, the codewords themselves, or
        ``both``. cluster_rate: how far a codeword goes, as a share of the sum of its weights' changes; that sum is Han
        et al.'s equation 3, and too far where thousands of weights share a codeword.
    """

    buckets: Buckets = "tensor"
    codebook: Literal["weighted"] | Codebook = "weighted"
    tune: Literal["weights", "clusters", "both"] = "both"
    cluster_rate: Annotated[float, Field(gt=0)] = 0.01


def numbers(bits: np.ndarray) -> np.ndarray:
    """That describe a bucket: its codewords."""
    return 2.0**bits


class NonUniformQuant(Learner):
    settings_type = Settings

    @staticmethod
    def space(model: nn.Module, task: Task, settings: Settings) -> CompressionSpace:
        """One knob, the bits, for every convolution and linear layer but the first and the last; cost ``bits``."""
        return bit_space.bit_space(model, task, settings, numbers)

    @staticmethod
    def prepare(model: nn.Module, task: Task, settings: Settings) -> Prepared:
        weighed = settings.codebook == "weighted"
        return bit_space.prepare(model, task, settings, partial(fit, settings=settings), weighed=weighed)

    @staticmethod
    def error_curves(model: nn.Module, task: Task, settings: Settings) -> dict[str, np.ndarray]:
        """What the predictions lose, to second order, by a layer's bits."""
        prepared = NonUniformQuant.prepare(model, task, settings)
        levels = {name: list(own.values()) for name, own in prepared.levels.items()}
        return bit_space.error_curves(model, task, prepared.norms, levels, prepared.information)

    @staticmethod
    def compress(model: nn.Module, plan: Plan, settings: Settings, cache: Prepared, steps: int) -> Hook | None:
        """The weights are quantized at once; with training the hook keeps them so."""
        latents = bit_space.compress(model, plan, settings, cache)
        layers = {name: model.get_submodule(name) for name in latents}
        if not steps:
            return None
        hook = MovingCodewords(layers, latents, settings)
        return with_delays(model, hook, settings.delay, settings.freeze_norms)


class MovingCodewords(StraightThrough):
    """``tune`` of the settings."""

    def __init__(self, layers: dict[str, nn.Module], latents: dict[str, Tensor], settings: Settings) -> None:
        super().__init__(layers, latents)
        self.settings = settings

    def moved(self, name: str, change: Tensor, step: int) -> Tensor:
        if self.settings.tune == "weights":
            return super().moved(name, change, step)
        words = self.layers[name].get_buffer("weight_codebook")
        codes = codebook.encode(self.shown[name], words)
        moved = words + self.settings.cluster_rate * codebook.sum_by_codeword(change, codes, words)
        # Codewords that have passed each other change places, because a codebook rises.
        words.copy_(moved.sort(1).values)
        if self.settings.tune == "clusters":
            return codebook.decode(codes, moved)
        return super().moved(name, change, step)


def fit(weight: Tensor, bits: int, count: int, information: Tensor | None = None, *, settings: Settings) -> QParams:
    """The codebooks of a weight in ``count`` buckets. information: of each weight, for ``weighted`` codebooks.

    Its square root is what counts: of a mean over few images the largest values are chance for the most part. On
    ResNet-20 it is as good as the information itself with one codebook a layer, and better with one a channel.
    """
    if settings.codebook == "weighted":
        assert information is not None
        return QParams(bits, codebook=codebook.fit(weight, bits, count, importance=information.sqrt()))
    return QParams(bits, codebook=codebook.fit(weight, bits, count, method=settings.codebook))
