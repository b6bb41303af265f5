"""Uniform quantization to k bits, with a range for every bucket (Wu et al. 2018, PocketFlow).

    Q(x) = a round((2^k - 1) (x - b) / a) / (2^k - 1) + b,    b <= x <= b + a

Notation: code c = 0 .. 2^k - 1; step s = a / (2^k - 1); low b; so Q(x) = c s + b with c = round((x - b) / s). A weight
in B buckets has b and s ``(B,)``. Values outside the range are clipped to its ends. ``symmetric``: zero is a level, as
integer kernels need it: c - 2^(k-1) is the signed integer and s its scale (k = 1: the two levels -s/2, s/2).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pfray.errors import ConfigError
from pfray.quantization.granularity import per_bucket, spread

Range = Literal["min_max", "percentile", "mse"]

MIN_BITS, MAX_BITS = 1, 8
# Shares of the whole range among which ``mse`` chooses.
SHRUNK = [i / 32 for i in range(32, 2, -1)]


def fit(
    weight: Tensor,
    bits: int,
    count: int = 1,
    *,
    symmetric: bool = False,
    method: Range = "mse",
    percentile: float = 99.9,
) -> tuple[Tensor, Tensor]:
    """(low ``(B,)``, step ``(B,)``) of the weight's ``count`` buckets.

    method: the range from the smallest to the largest value (``min_max``), without values beyond the ``percentile`` at
    both ends, or shrunk to the share with the least squared error (``mse``).
    A constant bucket has the step 0 and is exact. Raises ConfigError for bits other than 1 to 8.
    """
    check_bits(bits)
    low, step = per_bucket(
        partial(_fit_rows, bits=bits, symmetric=symmetric, method=method, percentile=percentile), weight, count
    )
    return low, step


def encode(weight: Tensor, low: Tensor, step: Tensor, bits: int) -> Tensor:
    """Codes of the nearest levels: whole numbers in the weight's dtype and shape."""
    step = spread(torch.where(step == 0, 1.0, step), weight)
    return weight.sub(spread(low, weight)).div_(step).round_().clamp_(0, 2**bits - 1)


def decode(codes: Tensor, low: Tensor, step: Tensor) -> Tensor:
    """The weights of the codes. Both operations round by IEEE 754, so the same codes always give the same bits."""
    return codes.mul(spread(step, codes)).add_(spread(low, codes))


def quantize(weight: Tensor, low: Tensor, step: Tensor, bits: int) -> Tensor:
    """Q(weight)."""
    return decode(encode(weight, low, step, bits), low, step)


def fake_quantize(values: Tensor, low: Tensor, step: Tensor, bits: int) -> Tensor:
    """Q(values) with one range, whose gradient is the clipping's alone: the straight-through estimator.

    Bengio et al. 2013: the rounding counts as the identity.
    """
    clipped = torch.minimum(torch.maximum(values.float(), low), low + step * (2**bits - 1))
    rounded = quantize(clipped.detach(), low, step, bits)
    return (clipped + (rounded - clipped).detach()).to(values.dtype)


def check_bits(bits: float) -> None:
    """Raises ConfigError for bits other than 1 to 8."""
    if bits != int(bits) or not MIN_BITS <= bits <= MAX_BITS:
        raise ConfigError(f"bits: {bits:g} is not allowed; a weight has {MIN_BITS} to {MAX_BITS} bits. "
                          f"Remedy: a whole number from {MIN_BITS} to {MAX_BITS}")  # fmt: skip


def _fit_rows(rows: Tensor, bits: int, symmetric: bool, method: Range, percentile: float) -> tuple[Tensor, Tensor]:
    """(low, step) of each row of ``(B, R)``."""
    if method == "percentile":
        ordered = rows.sort(1).values
        last = rows.shape[1] - 1
        top = ordered[:, round(last * percentile / 100)]
        bottom = ordered[:, round(last * (1 - percentile / 100))]
    else:
        bottom, top = rows.aminmax(dim=1)
    best = _grid(bottom, top, bits, symmetric)
    if method != "mse":
        return best
    least = _squared_error(rows, *best, bits)
    # Ranges shrink towards zero, where activations after a ReLU end and weights are densest.
    anchor = torch.where((bottom <= 0) & (top >= 0), 0.0, (bottom + top) / 2)
    for share in SHRUNK[1:]:
        grid = _grid(torch.lerp(anchor, bottom, share), torch.lerp(anchor, top, share), bits, symmetric)
        error = _squared_error(rows, *grid, bits)
        better = error < least
        least = torch.where(better, error, least)
        best = (torch.where(better, grid[0], best[0]), torch.where(better, grid[1], best[1]))
    return best


def _grid(bottom: Tensor, top: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    if not symmetric:
        return bottom, (top - bottom) / (2**bits - 1)
    largest = torch.maximum(bottom.abs(), top.abs())
    if bits == 1:
        return -largest, 2 * largest
    step = largest / (2 ** (bits - 1) - 1)
    # A power of two times the step is exact, and so zero is a level exactly.
    return -(2 ** (bits - 1)) * step, step


def _squared_error(rows: Tensor, low: Tensor, step: Tensor, bits: int) -> Tensor:
    """Squared errors ``(B,)`` of rows ``(B, R)``."""
    safe = torch.where(step == 0, 1.0, step)
    codes = rows.sub(low[:, None]).div_(safe[:, None]).round_().clamp_(0, 2**bits - 1)
    return codes.mul_(step[:, None]).add_(low[:, None]).sub_(rows).square_().sum(1)
