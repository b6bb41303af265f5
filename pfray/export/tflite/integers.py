"""Weights as integers with a scale for each output channel: the form that LiteRT's files have for them.

Notation: a weight has O channels of n values each, v = s (q - z) with an integer q of 4 or 8 bits. Levels of pfray
(``pfray/quantization/qparams.py``) have the values v = c S + L for codes c = 0 .. 2^k - 1. The two agree if L is
a whole number of steps S/m, as for symmetric levels (m = 1). Other levels are approximated: a code of k < 8 bits leaves
room for m - 1 integers between two levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Share of the largest weight: float32's rounding in the folding of a batch norm and in the unpacking.
EXACT = 1e-6
LOWEST, HIGHEST = -128, 127
# Scales tried in addition to fractions of the weight's own step, as shares of the whole range over 255.
WIDENED = [1 + i / 64 for i in range(17)]


@dataclass(frozen=True)
class Integers:
    """codes q, int8 ``(O, n)``; scale s, float32, and zero z, int64, ``(O,)``. error: the largest |v - s (q - z)| as a
    share of the largest |v|."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    error: float

    @property
    def exact(self) -> bool:
        return self.error <= EXACT


def nearest_int8(values: np.ndarray, step: np.ndarray | None, bits: int) -> Integers:
    """The int8 form of ``(O, n)`` values on 2^bits levels with the steps ``(O,)``; step None for a codebook.

    Each channel gets the scale whose errors e change an output least, by sqrt(sum(e)^2 + sum(e^2)): errors of one sign
    add up over inputs that are positive behind a ReLU, and others cancel.
    """
    bottom, top = np.minimum(values.min(1), 0), np.maximum(values.max(1), 0)
    fractions = [] if step is None else [step / m for m in range(1, 255 // (2**bits - 1) + 1)]
    candidates = [*fractions, *((top - bottom) / 255 * share for share in WIDENED), np.abs(values).max(1) / HIGHEST]
    best = None
    for scale in candidates:
        scale = _positive(scale)
        zero = np.clip(np.rint(LOWEST - bottom / scale), LOWEST, HIGHEST)
        codes = np.clip(np.rint(values / scale[:, None]) + zero[:, None], LOWEST, HIGHEST)
        errors = scale[:, None] * (codes - zero[:, None]) - values
        harm = np.sqrt(errors.sum(1) ** 2 + (errors**2).sum(1))
        if best is None:
            best = harm, codes, scale, zero
        else:
            # Ties but for rounding keep the earlier scale, the coarsest.
            better = harm < 0.99 * best[0] - EXACT * np.abs(values).max(1)
            best = tuple(np.where(better[:, None] if new.ndim > 1 else better, new, old)
                         for new, old in zip((harm, codes, scale, zero), best, strict=True))  # fmt: skip
    assert best is not None
    return _integers(values, *best[1:])


def exact_int4(values: np.ndarray, step: np.ndarray, bits: int, negative: bool = False) -> Integers | None:
    """The int4 form with z = 0 of ``(O, n)`` values, which kernels multiply as they are; None if it is not exact.

    negative: True if scales may be negative.
    """
    for m in range(1, 15 // (2**bits - 1) + 1):
        scale = _positive(np.where(step == 0, np.abs(values).max(1), step / m))
        codes = np.rint(values / scale[:, None])
        if negative:
            # A channel that a negative batch norm turned around has codes from -7 to 8.
            scale = np.where(codes.max(1) > 7, -scale, scale)
        codes = np.clip(np.rint(values / scale[:, None]), -8, 7)
        found = _integers(values, codes, scale, np.zeros(len(values)))
        if found.exact:
            return found
    return None


def packed_int4(codes: np.ndarray) -> np.ndarray:
    """Codes of -8 to 7, two a byte, the first in the lower half."""
    nibbles = codes.ravel().astype(np.uint8) & 0x0F
    nibbles = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
    return nibbles[0::2] | nibbles[1::2] << 4


def _integers(values: np.ndarray, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> Integers:
    scale = scale.astype(np.float32)
    error = np.abs(scale.astype(float)[:, None] * (codes - zero[:, None]) - values).max(initial=0)
    largest = np.abs(values).max(initial=0)
    return Integers(codes.astype(np.int8), scale, zero.astype(np.int64), float(error / largest) if largest else 0.0)


def _positive(scale: np.ndarray) -> np.ndarray:
    """The scales, with 1 for a channel of zeros."""
    return np.where(scale > 0, scale, 1.0)
