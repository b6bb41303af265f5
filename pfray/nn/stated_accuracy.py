"""The accuracy that a weights file states: beside a checkpoint's state dict, or in a ``.safetensors``' metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from pfray.nn.weights_file import read

# Names that training scripts give it, the best of a training first.
NAMES = (
    "best_accuracy", "best_acc", "best_acc1", "best_prec1", "best_top1", "accuracy", "acc", "acc1", "acc@1", "top1",
    "val_accuracy", "val_acc", "test_accuracy", "test_acc",
)  # fmt: skip


def stated_accuracy(path: Path) -> float | None:
    """The accuracy as a share, in which numbers above 1 are percent; None if the file states none.

    Raises WeightsError for a file that cannot be read.
    """
    entries = _metadata(path) if path.suffix == ".safetensors" else read(f"model.weights: {path}", path)
    if not isinstance(entries, Mapping):
        return None
    return next((share for name in NAMES if (share := _share(entries.get(name))) is not None), None)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _share(value: Any) -> float | None:
    """The share of a number, a tensor of one, or a text such as ``71.3`` or ``71.3 %``; None for any other value."""
    if isinstance(value, Tensor) and value.numel() != 1:
        return None
    percent = isinstance(value, str) and value.strip().endswith("%")
    number = math.nan
    with suppress(TypeError, ValueError, RuntimeError):
        number = float(value.strip().removesuffix("%") if isinstance(value, str) else value)
    if not 0 < number <= 100 or isinstance(value, bool):
        return None
    return number / 100 if percent or number > 1 else number
