"""Codebook quantization with a bit width per layer (Han et al. 2016; PocketFlow's ``NonUniformQuantLearner``).

The weights of a bucket, by default a whole layer, share 2^b codewords (``pfray/quantization/codebook.py``). Training
moves the weights, the codewords or both. A weight keeps a latent float value and shows the nearest codeword. A codeword
moves by the sum of its weights' changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from learners._bits import BitAlgorithm
from pfray.quantization import bit_space, codebook
from pfray.quantization.bit_space import BitSettings, Prepared
from pfray.quantization.codebook import Codebook
from pfray.quantization.granularity import Buckets
from pfray.quantization.qparams import QParams
from pfray.quantization.straight_through import StraightThrough


@dataclass(frozen=True)
class Settings(BitSettings):
    """codebook: initial codewords: of least squared error (``kmeans``), of least squared error weighted by the square
        root of the Fisher information (``weighted``), with equally many weights each (``quantile``), or evenly spaced
        (``uniform``).
    tune: what training moves: ``weights`` between codewords, ``clusters``, i.e. the codewords, or ``both``.
    cluster_rate: step of a codeword, as a share of the sum of its weights' changes. The whole sum, Han et al.'s
        equation 3, is too large if thousands of weights share a codeword.
    """

    buckets: Buckets = "tensor"
    codebook: Literal["weighted"] | Codebook = "weighted"
    tune: Literal["weights", "clusters", "both"] = "both"
    cluster_rate: Annotated[float, Field(gt=0)] = 0.01


class MovingCodewords(StraightThrough):
    """Straight-through training that moves weights, codewords or both, by ``tune`` of the settings."""

    def __init__(self, layers: dict[str, nn.Module], latents: dict[str, Tensor], settings: Settings) -> None:
        super().__init__(layers, latents)
        self.settings = settings

    def moved(self, name: str, change: Tensor, step: int) -> Tensor:
        if self.settings.tune == "weights":
            return super().moved(name, change, step)
        words = self.layers[name].get_buffer("weight_codebook")
        codes = codebook.encode(self.shown[name], words)
        moved = words + self.settings.cluster_rate * codebook.sum_by_codeword(change, codes, words)
        # Sorted, because a codebook is ascending and codewords may pass each other.
        words.copy_(moved.sort(1).values)
        if self.settings.tune == "clusters":
            return codebook.decode(codes, moved)
        return super().moved(name, change, step)

    def source(self, name: str) -> Tensor:
        # Of moving codewords alone the float weights do not follow, and the weight itself lies on them.
        return self.layers[name].get_parameter("weight") if self.settings.tune == "clusters" else super().source(name)


class NonUniformQuant(BitAlgorithm):
    settings: Settings
    settings_type = Settings
    hook_type = MovingCodewords

    @staticmethod
    def floats_per_bucket(bits: np.ndarray) -> np.ndarray:
        """Floats stored per bucket: its codewords."""
        return 2.0**bits

    @cached_property
    def prepared(self) -> Prepared:
        codebooks, weighed = partial(fit_codebooks, settings=self.settings), self.settings.codebook == "weighted"
        return bit_space.prepare(self.model, self.task, self.settings, codebooks, weighed=weighed)


def fit_codebooks(
    weight: Tensor, bits: int, count: int, information: Tensor | None = None, *, settings: Settings
) -> QParams:
    """The codebooks of a weight in ``count`` buckets. information: of each weight, for ``weighted`` codebooks.

    Its square root is the importance: in a mean over few images the largest values are mostly noise. On ResNet-20 the
    root is as good as the information itself with one codebook per layer, and better with one per channel.
    """
    if settings.codebook == "weighted":
        assert information is not None
        return QParams(bits, codebook=codebook.fit(weight, bits, count, importance=information.sqrt()))
    return QParams(bits, codebook=codebook.fit(weight, bits, count, method=settings.codebook))
