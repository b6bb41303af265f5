"""Codebooks: the weights of a bucket share 2^k values (Han et al. 2016, "Deep Compression", section 3).

Notation: a bucket holds R weights x_1 <= ... <= x_R; its codebook the K = 2^k codewords c_1 <= ... <= c_K, and a
weight's code is the index of the nearest one. In one dimension the weights of a codeword are neighbours, so of the
sorted weights only the K - 1 borders have to be found, and with cumulative sums a step of Lloyd's algorithm (k-means)
costs K log R.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pfray.buckets import per_bucket, run_length
from pfray.quantize import check_bits

Codebook = Literal["kmeans", "quantile", "uniform"]

# Where k-means starts, as Lloyd's algorithm ends in whichever minimum is near: powers of the gaps between neighbouring
# weights, whose sum each codeword gets an equal share of. 0 gives the quantiles and 1 evenly spaced codewords. The best
# ones for many codewords lie as the density to the power of 1/3 (Panter & Dite 1951), which is the power 2/3 of gaps.
STARTS = (0.0, 1 / 3, 2 / 3, 5 / 6, 1.0)
# Steps from each start, and from the best of what these gave; the last ones end where no codeword moves by more than
# TOLERANCE of their mean distance.
TRIES, STEPS = 20, 200
TOLERANCE = 1e-3


def fit(weight: Tensor, bits: int, count: int = 1, *, method: Codebook = "kmeans") -> Tensor:
    """Codebooks ``(B, 2^k)``, rising, of the weight's ``count`` buckets, in the weight's dtype.

    method: ``uniform``, evenly spaced from the smallest to the largest weight (Han et al.: linear); ``quantile``, as
    many weights to each codeword; ``kmeans``, the least squared error. Raises ConfigError for bits other than 1 to 8.
    """
    check_bits(bits)
    (codebook,) = per_bucket(partial(_fit_rows, size=2**bits, method=method), weight, count)
    return codebook


def encode(weight: Tensor, codebook: Tensor) -> Tensor:
    """The codes, int64 of the weight's shape: the index of the nearest codeword in its bucket's codebook."""
    borders = (codebook[:, 1:] + codebook[:, :-1]) / 2
    flat, run = weight.detach().flatten(), run_length(weight.numel(), len(codebook))
    padded = torch.nn.functional.pad(flat, (0, run * len(codebook) - len(flat))).view(len(codebook), run)
    return torch.searchsorted(borders.contiguous(), padded).flatten()[: len(flat)].view(weight.shape)


def decode(codes: Tensor, codebook: Tensor) -> Tensor:
    """The weights."""
    return codebook.flatten()[_places(codes, codebook)]


def sum_by_codeword(values: Tensor, codes: Tensor, codebook: Tensor) -> Tensor:
    """``(B, 2^k)``: the sum of ``values``, of the weight's shape, over the weights of each codeword.

    Of a weight's gradients this is the codeword's gradient (Han et al. 2016, equation 3).
    """
    sums = torch.zeros_like(codebook).flatten()
    return sums.index_add_(0, _places(codes, codebook).flatten(), values.flatten()).view(codebook.shape)


def _places(codes: Tensor, codebook: Tensor) -> Tensor:
    """The codes as indices into all codebooks, one after the other."""
    count, size = codebook.shape
    if count == 1:
        return codes
    run = run_length(codes.numel(), count)
    bucket = torch.arange(codes.numel(), device=codes.device).div_(run, rounding_mode="floor")
    return codes + (bucket * size).view(codes.shape)


def _fit_rows(rows: Tensor, size: int, method: Codebook) -> tuple[Tensor]:
    """The codebooks ``(B, K)`` of the rows of ``(B, R)``."""
    ordered = rows.double().sort(1).values
    if method != "kmeans":
        return (_spaced(ordered, size, 0.0 if method == "quantile" else 1.0).to(rows.dtype),)
    sums, squares = (_cumulative(values) for values in (ordered, ordered.square()))
    runs = [_lloyd(ordered, sums, squares, _spaced(ordered, size, power), TRIES) for power in STARTS]
    best, least = runs[0]
    for found, error in runs[1:]:
        best = torch.where((error < least)[:, None], found, best)
        least = torch.minimum(error, least)
    best, _ = _lloyd(ordered, sums, squares, best, STEPS)
    return (best.to(rows.dtype),)


def _spaced(ordered: Tensor, size: int, power: float) -> Tensor:
    """``(B, K)``: codewords with equal shares of the sum of the gaps to the ``power`` between them."""
    if power == 1.0:
        places = torch.linspace(0, 1, size, dtype=ordered.dtype, device=ordered.device)
        return torch.lerp(ordered[:, :1], ordered[:, -1:], places)
    # 0^0 is 1, so that for the quantiles equal weights count too.
    shares = _cumulative(ordered.diff(dim=1).pow(power))
    wanted = (torch.arange(size, dtype=ordered.dtype, device=ordered.device) + 0.5) / size * shares[:, -1:]
    return ordered.gather(1, torch.searchsorted(shares, wanted).clamp_max(ordered.shape[1] - 1))


def _lloyd(ordered: Tensor, sums: Tensor, squares: Tensor, codebook: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(codebooks ``(B, K)`` after so many steps or when they are still, their squared errors ``(B,)``)."""
    for _ in range(steps):
        counts, totals, _ = _clusters(ordered, sums, squares, codebook)
        # A codeword that no weight is nearest to stays where it is.
        moved = torch.where(counts > 0, totals / counts.clamp_min(1), codebook)
        still = (moved - codebook).abs().amax(1) <= TOLERANCE * (ordered[:, -1] - ordered[:, 0]) / codebook.shape[1]
        codebook = moved
        if still.all():
            break
    counts, totals, powers = _clusters(ordered, sums, squares, codebook)
    # sum (x - c)^2 over a cluster, in its sums of 1, x and x^2.
    errors = powers - 2 * codebook * totals + codebook.square() * counts
    return codebook, errors.sum(1).clamp_min(0)


def _clusters(ordered: Tensor, sums: Tensor, squares: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each codeword ``(B, K)``: how many weights are nearest to it, their sum, the sum of their squares."""
    borders = torch.searchsorted(ordered, (codebook[:, 1:] + codebook[:, :-1]) / 2, right=True)
    first = torch.zeros_like(borders[:, :1])
    ends = torch.cat([first, borders, torch.full_like(first, ordered.shape[1])], 1)
    return ends.diff(), sums.gather(1, ends).diff(), squares.gather(1, ends).diff()


def _cumulative(values: Tensor) -> Tensor:
    """``(B, R + 1)``, from 0."""
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))
