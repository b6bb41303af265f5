"""Codebooks with a number of bits for each layer (Han et al. 2016; PocketFlow's ``NonUniformQuantLearner``).

The weights of a bucket, by default a whole layer, share 2^b values (``pfray/quantization/codebook.py``). In training
the weights,
the codewords or both move: a weight keeps a latent float value and shows the nearest codeword, and a codeword moves by
what all of its weights would move by together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from pfray.learner.base import Algorithm, Compressed
from pfray.quantization import bit_space, codebook
from pfray.quantization.bit_space import BitSettings, Prepared
from pfray.quantization.codebook import Codebook
from pfray.quantization.granularity import Buckets
from pfray.quantization.qparams import QParams
from pfray.quantization.straight_through import StraightThrough
from pfray.space import CompressionSpace, Plan


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


class NonUniformQuant(Algorithm):
    settings: Settings
    settings_type = Settings
    has_error_curves = True

    def space(self) -> CompressionSpace:
        """One knob, the bits, for every convolution and linear layer but the first and the last; cost ``bits``."""
        return bit_space.bit_space(self.model, self.task, self.settings, numbers)

    @cached_property
    def prepared(self) -> Prepared:
        codebooks, weighed = partial(fit, settings=self.settings), self.settings.codebook == "weighted"
        return bit_space.prepare(self.model, self.task, self.settings, codebooks, weighed=weighed)

    def error_curves(self) -> dict[str, np.ndarray]:
        return self.prepared.error_curves(self.model, self.task)

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """The weights are quantized at once; with training the hook keeps them so."""
        hook = partial(MovingCodewords, settings=self.settings)
        return Compressed(*bit_space.compress(self.model, plan, self.settings, self.prepared, steps, hook))


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
