"""torchvision's wheels import beside a CPU-only torch once two operators are defined, which classifiers do not call."""

from __future__ import annotations

from functools import cache

import torch


@cache
def load() -> torch.library.Library:
    """Define the operators, once in a process, where torchvision has not. The cache keeps them alive."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    if not hasattr(torch.ops.torchvision, "nms"):
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
