"""Operators that torchvision looks for on import, whose wheels do not bring them for a CPU-only torch."""

from __future__ import annotations

import torch

_libraries: list[torch.library.Library] = []


def load() -> None:
    """Define torchvision's operators once, so that torchvision and timm can be imported. They compute nothing."""
    if _libraries or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
