"""Codebooks: the weights of a bucket share 2^k values (Han et al. 2016, "Deep Compression", section 3).

Notation: a bucket holds R weights x_1 <= ... <= x_R; its codebook the K = 2^k codewords c_1 <= ... <= c_K, and a
weight's code is the index of the nearest one. In one dimension the weights of a codeword are neighbours, so of the
sorted weights only the K - 1 borders have to be found, and with cumulative sums a step of Lloyd's algorithm (k-means)
costs K log R.

Where the weights are of unequal importance f_1, ..., f_R, what is least is sum f_r (x_r - c)^2, and a codeword the mean
of its weights so weighed (Choi, El-Khamy & Lee 2017, "Towards the limit of network quantization", section 3.2, with the
Hessian's diagonal as importance). Without, f_r = 1.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pfray.quantization.affine import check_bits
from pfray.quantization.granularity import per_bucket, run_length

Codebook = Literal["kmeans", "quantile", "uniform"]

# Where k-means starts, as Lloyd's algorithm ends in whichever minimum is near: powers of the gaps between neighbouring
# weights, whose sum each codeword gets an equal share of. 0 gives the quantiles and 1 evenly spaced codewords. The best
# ones for many codewords lie as the density to the power of 1/3 (Panter & Dite 1951), which is the power 2/3 of gaps.
STARTS = (0.0, 1 / 3, 2 / 3, 5 / 6, 1.0)
# The least importance of a weight, as a share of the mean of its bucket. Weights that matter little each are many: left
# to chance, they are all rounded to the same side, and together move what the next layer reads.
LEAST = 0.5
# Steps from each start, and from the best of what these gave; the last ones end where no codeword moves by more than
# TOLERANCE of their mean distance.
TRIES, STEPS = 20, 200
TOLERANCE = 1e-3


def fit(
    weight: Tensor, bits: int, count: int = 1, *, method: Codebook = "kmeans", importance: Tensor | None = None
) -> Tensor:
    """Codebooks ``(B, 2^k)``, rising, of the weight's ``count`` buckets, in the weight's dtype.

    method: ``uniform``, evenly spaced from the smallest to the largest weight (Han et al.: linear); ``quantile``, as
    many weights to each codeword; ``kmeans``, the least squared error. importance: of each weight, none below 0, for
    the squared error of ``kmeans``; None for all the same. Raises ConfigError for bits other than 1 to 8.
    """
    check_bits(bits)
    importance = torch.ones_like(weight) if importance is None else importance
    (codebook,) = per_bucket(partial(_fit_rows, size=2**bits, method=method), weight, count, importance)
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


def _fit_rows(rows: Tensor, importance: Tensor, size: int, method: Codebook) -> tuple[Tensor]:
    """The codebooks ``(B, K)`` of the rows of ``(B, R)``."""
    ordered, order = rows.double().sort(1)
    if method != "kmeans":
        return (_spaced(ordered, size, 0.0 if method == "quantile" else 1.0).to(rows.dtype),)
    mass = importance.double().gather(1, order)
    mean = mass.mean(1, keepdim=True)
    # A row of which no weight matters is fitted as if all did.
    mass = torch.where(mean > 0, mass / mean, 1.0).clamp_min(LEAST)
    sums = _Sums(ordered, _cumulative(mass), _cumulative(mass * ordered), _cumulative(mass * ordered.square()))
    runs = [_lloyd(sums, _spaced(ordered, size, power), TRIES) for power in STARTS]
    best, least = runs[0]
    for found, error in runs[1:]:
        best = torch.where((error < least)[:, None], found, best)
        least = torch.minimum(error, least)
    best, _ = _lloyd(sums, best, STEPS)
    return (best.to(rows.dtype),)


class _Sums(NamedTuple):
    """The sorted weights ``(B, R)``, and from 0 the sums of f, f x and f x^2 over them, each ``(B, R + 1)``."""

    ordered: Tensor
    mass: Tensor
    first: Tensor
    second: Tensor


def _spaced(ordered: Tensor, size: int, power: float) -> Tensor:
    """``(B, K)``: codewords with equal shares of the sum of the gaps to the ``power`` between them."""
    if power == 1.0:
        places = torch.linspace(0, 1, size, dtype=ordered.dtype, device=ordered.device)
        return torch.lerp(ordered[:, :1], ordered[:, -1:], places)
    # 0^0 is 1, so that for the quantiles equal weights count too.
    shares = _cumulative(ordered.diff(dim=1).pow(power))
    wanted = (torch.arange(size, dtype=ordered.dtype, device=ordered.device) + 0.5) / size * shares[:, -1:]
    return ordered.gather(1, torch.searchsorted(shares, wanted).clamp_max(ordered.shape[1] - 1))


def _lloyd(sums: _Sums, codebook: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(codebooks ``(B, K)`` after so many steps or when they are still, their squared errors ``(B,)``)."""
    tolerance = TOLERANCE * (sums.ordered[:, -1] - sums.ordered[:, 0]) / codebook.shape[1]
    for _ in range(steps):
        counts, mass, first, _ = _clusters(sums, codebook)
        # A codeword that no weight is nearest to stays where it is.
        moved = torch.where(counts > 0, first / mass, codebook)
        still = (moved - codebook).abs().amax(1) <= tolerance
        codebook = moved
        if still.all():
            break
    _, mass, first, second = _clusters(sums, codebook)
    # sum f (x - c)^2 over a cluster, in its sums of f, f x and f x^2.
    errors = second - 2 * codebook * first + codebook.square() * mass
    return codebook, errors.sum(1).clamp_min(0)


def _clusters(sums: _Sums, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each codeword ``(B, K)``: how many weights are nearest to it, and their sums of f, f x and f x^2."""
    borders = torch.searchsorted(sums.ordered, (codebook[:, 1:] + codebook[:, :-1]) / 2, right=True)
    start = torch.zeros_like(borders[:, :1])
    ends = torch.cat([start, borders, torch.full_like(start, sums.ordered.shape[1])], 1)
    mass, first, second = (cumulative.gather(1, ends).diff() for cumulative in sums[1:])
    return ends.diff(), mass, first, second


def _cumulative(values: Tensor) -> Tensor:
    """``(B, R + 1)``, from 0."""
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))
