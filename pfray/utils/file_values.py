"""Values of a ``.tflite``'s inputs and outputs: integers that stand for floats, and values drawn for a tensor.

Kept to numpy, because ``pfray.measure.interpreter`` runs on devices that have nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def quantize(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """``values`` in the dtype of a tensor, rounded by its scale and zero point if it is quantized."""
    dtype = np.dtype(detail["dtype"])
    scale, zero_point = detail["quantization"]
    if not is_quantized(detail):
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.round(values / scale) + zero_point, limits.min, limits.max).astype(dtype)


def dequantize(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """The float32 values that a quantized tensor stands for; other tensors as they are."""
    scale, zero_point = detail["quantization"]
    if not is_quantized(detail):
        return values
    return (values.astype(np.float32) - zero_point) * np.float32(scale)


def is_quantized(detail: dict[str, Any]) -> bool:
    return np.issubdtype(np.dtype(detail["dtype"]), np.integer) and detail["quantization"][0] != 0


def drawn(detail: dict[str, Any]) -> np.ndarray:
    """An input with a fixed seed: 0 or 1 for whole numbers and truth values, otherwise normal numbers, in its dtype."""
    generator, shape = np.random.default_rng(0), tuple(detail["shape"])
    if np.issubdtype(np.dtype(detail["dtype"]), np.floating) or is_quantized(detail):
        return quantize(generator.standard_normal(shape, np.float32), detail)
    return generator.integers(0, 2, shape).astype(detail["dtype"])
