"""Granularity of a quantized weight: it is cut into buckets, each quantized by itself.

Notation: a weight has n elements, in the order of ``weight.flatten()``, cut into B runs of R = ceil(n / B); the last
run may be shorter. B alone gives the start of every bucket, so nothing else has to be stored. B = 1 is the whole
tensor, B = O the output channels of a convolution or linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pfray.errors import WeightsError

Buckets = Literal["tensor", "channel", "run"]


def bucket_count(weight: Tensor, buckets: Buckets, bucket_size: int) -> int:
    """B. ``run``: the fewest runs of equal length with at most ``bucket_size`` weights each."""
    if buckets == "run":
        return max(1, math.ceil(weight.numel() / bucket_size))
    return len(weight) if buckets == "channel" else 1


def run_length(size: int, count: int) -> int:
    """R of a weight with ``size`` elements in ``count`` buckets."""
    return math.ceil(size / count)


def per_bucket(
    function: Callable[..., tuple[Tensor, ...]], weight: Tensor, count: int, *beside: Tensor
) -> list[Tensor]:
    """Results of ``function`` on the buckets as rows ``(B, R)``; each tensor that it returns has B as the first axis.

    beside: tensors of the weight's shape, cut likewise and passed as further arguments. A shorter last run is passed as
    a matrix of its own.
    """
    run = run_length(weight.numel(), count)
    whole = weight.numel() // run
    flats = [tensor.detach().flatten() for tensor in (weight, *beside)]
    parts = [
        [flat[: whole * run].view(whole, run) for flat in flats],
        [flat[whole * run :].view(1, -1) for flat in flats],
    ]
    results = [function(*part) for part in parts if part[0].numel()]
    return [torch.cat(pieces) for pieces in zip(*results, strict=True)]


def spread(values: Tensor, weight: Tensor) -> Tensor:
    """Values ``(B,)`` of the buckets, broadcastable to the weight's shape."""
    if len(values) == 1:
        return values
    if len(values) == len(weight):
        return values.view(-1, *[1] * (weight.dim() - 1))
    run = run_length(weight.numel(), len(values))
    return values.repeat_interleave(run)[: weight.numel()].view(weight.shape)


def check_finite(name: str, weight: Tensor) -> None:
    """Raise WeightsError for a weight with NaN or infinite values."""
    bad = weight.numel() - int(weight.isfinite().sum())
    if bad:
        raise WeightsError(
            f"{name}: {bad} of {weight.numel()} weights are NaN or infinite, and only numbers can be quantized. "
            "Remedy: weights of a training that did not diverge"
        )
