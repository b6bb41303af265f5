"""Codebooks: the weights of a bucket share 2^k values (Han et al. 2016, "Deep Compression", section 3).

Notation: a bucket holds R weights x_1 <= ... <= x_R; its codebook the K = 2^k codewords c_1 <= ... <= c_K, and a
weight's code is the index of the nearest one. In one dimension the weights of a codeword are neighbours, so of the
sorted weights only the K - 1 borders have to be found, and with cumulative sums a step of Lloyd's algorithm (k-means)
costs K log R.

With importances f_1, ..., f_R of the weights, sum f_r (x_r - c)^2 is minimized, and a codeword is the weighted mean of
its weights (Choi, El-Khamy & Lee 2017, "Towards the limit of network quantization", section 3.2, with the Hessian's
diagonal as importance). Without them f_r = 1.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pfray.quantization.affine import check_bits
from pfray.quantization.granularity import per_bucket, run_length

Codebook = Literal["kmeans", "quantile", "uniform"]

# Starts of k-means, because Lloyd's algorithm ends in the nearest local minimum. Each is a power p: codewords get equal
# shares of the sum of (gap between neighbouring weights)^p. p = 0 gives the quantiles, p = 1 evenly spaced codewords.
# For many codewords the optimal density is the weights' to the power 1/3 (Panter & Dite 1951), which is p = 2/3.
STARTS = (0.0, 1 / 3, 2 / 3, 5 / 6, 1.0)
# Least importance of a weight, as a share of its bucket's mean. Weights of little importance are many: without this
# they may all be rounded to the same side, and together shift the next layer's inputs.
LEAST = 0.5
# Steps from each start, then from the best result; they end early when no codeword moves by more than TOLERANCE of the
# codewords' mean distance.
TRIES, STEPS = 20, 200
TOLERANCE = 1e-3


def fit(
    weight: Tensor, bits: int, count: int = 1, *, method: Codebook = "kmeans", importance: Tensor | None = None
) -> Tensor:
    """Codebooks ``(B, 2^k)``, rising, of the weight's ``count`` buckets, in the weight's dtype.

    method: ``uniform``, evenly spaced from the smallest to the largest weight (Han et al.: linear); ``quantile``,
    equally many weights for each codeword; ``kmeans``, the least squared error. importance: of each weight, 0 or more,
    for the squared error of ``kmeans``; None for equal ones. Raises ConfigError for bits other than 1 to 8.
    """
    check_bits(bits)
    importance = torch.ones_like(weight) if importance is None else importance
    (codebook,) = per_bucket(partial(_fit_rows, size=2**bits, method=method), weight, count, importance)
    return codebook


def encode(weight: Tensor, codebook: Tensor) -> Tensor:
    """Codes, int64 of the weight's shape: the index of the nearest codeword in the bucket's codebook."""
    borders = (codebook[:, 1:] + codebook[:, :-1]) / 2
    flat, run = weight.detach().flatten(), run_length(weight.numel(), len(codebook))
    padded = torch.nn.functional.pad(flat, (0, run * len(codebook) - len(flat))).view(len(codebook), run)
    return torch.searchsorted(borders.contiguous(), padded).flatten()[: len(flat)].view(weight.shape)


def decode(codes: Tensor, codebook: Tensor) -> Tensor:
    """The codewords of the codes, in the codes' shape."""
    return codebook.flatten()[_places(codes, codebook)]


def sum_by_codeword(values: Tensor, codes: Tensor, codebook: Tensor) -> Tensor:
    """Sums ``(B, 2^k)`` of ``values``, of the weight's shape, over the weights of each codeword.

    For a weight's gradient this is the codewords' gradient (Han et al. 2016, equation 3).
    """
    sums = torch.zeros_like(codebook).flatten()
    return sums.index_add_(0, _places(codes, codebook).flatten(), values.flatten()).view(codebook.shape)


def _places(codes: Tensor, codebook: Tensor) -> Tensor:
    """The codes as indices into the flattened codebooks."""
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
    # A row of zero importance is fitted as if all its weights were equally important.
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
    """The sorted weights ``(B, R)`` and the cumulative sums of f, f x and f x^2, each ``(B, R + 1)`` from 0."""

    ordered: Tensor
    mass: Tensor
    first: Tensor
    second: Tensor


def _spaced(ordered: Tensor, size: int, power: float) -> Tensor:
    """Codewords ``(B, K)`` with equal shares of the sum of gap^power between them."""
    if power == 1.0:
        places = torch.linspace(0, 1, size, dtype=ordered.dtype, device=ordered.device)
        return torch.lerp(ordered[:, :1], ordered[:, -1:], places)
    # 0^0 is 1, so equal weights count for the quantiles too.
    shares = _cumulative(ordered.diff(dim=1).pow(power))
    wanted = (torch.arange(size, dtype=ordered.dtype, device=ordered.device) + 0.5) / size * shares[:, -1:]
    return ordered.gather(1, torch.searchsorted(shares, wanted).clamp_max(ordered.shape[1] - 1))


def _lloyd(sums: _Sums, codebook: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(codebooks ``(B, K)`` after ``steps`` steps or at convergence, their squared errors ``(B,)``)."""
    tolerance = TOLERANCE * (sums.ordered[:, -1] - sums.ordered[:, 0]) / codebook.shape[1]
    for _ in range(steps):
        counts, mass, first, _ = _clusters(sums, codebook)
        # A codeword without weights stays where it is.
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
    """(weights nearest to each codeword, their sums of f, f x and f x^2), each ``(B, K)``."""
    borders = torch.searchsorted(sums.ordered, (codebook[:, 1:] + codebook[:, :-1]) / 2, right=True)
    start = torch.zeros_like(borders[:, :1])
    ends = torch.cat([start, borders, torch.full_like(start, sums.ordered.shape[1])], 1)
    mass, first, second = (cumulative.gather(1, ends).diff() for cumulative in sums[1:])
    return ends.diff(), mass, first, second


def _cumulative(values: Tensor) -> Tensor:
    """Cumulative sums ``(B, R + 1)``, from 0."""
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))
