"""A weight cut into buckets, each quantized by itself.

Notation: a weight has n elements, in the order of ``weight.flatten()``, cut into B runs of R = ceil(n / B); the last
run may be shorter. B alone says where every bucket begins, so nothing else has to be stored. One bucket is the whole
tensor, and as many as the first axis is long are the output channels of a convolution or linear layer.
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
    """B. ``run``: as few runs of equal length as have at most ``bucket_size`` weights each."""
    if buckets == "run":
        return max(1, math.ceil(weight.numel() / bucket_size))
    return len(weight) if buckets == "channel" else 1


def run_length(size: int, count: int) -> int:
    """R of a weight with ``size`` elements in ``count`` buckets."""
    return math.ceil(size / count)


def per_bucket(
    function: Callable[..., tuple[Tensor, ...]], weight: Tensor, count: int, *beside: Tensor
) -> list[Tensor]:
    """``function`` of the buckets as the rows of a matrix ``(B, R)``; each tensor it gives has B for its first axis.

    beside: tensors of the weight's shape that are cut like it, for the function's further arguments. Where the last run
    is shorter it is a matrix of its own.
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
    """Each bucket's value ``(B,)`` at all of its weights: broadcastable to the weight's shape."""
    if len(values) == 1:
        return values
    if len(values) == len(weight):
        return values.view(-1, *[1] * (weight.dim() - 1))
    run = run_length(weight.numel(), len(values))
    return values.repeat_interleave(run)[: weight.numel()].view(weight.shape)


def check_finite(name: str, weight: Tensor) -> None:
    """Raises WeightsError where a weight cannot be quantized."""
    bad = weight.numel() - int(weight.isfinite().sum())
    if bad:
        raise WeightsError(
            f"{name}: {bad} of {weight.numel()} weights are NaN or infinite, and only numbers can be quantized. "
            "Remedy: weights of a training that did not diverge"
        )
