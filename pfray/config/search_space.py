"""Searched settings: ``finetune.lr: loguniform(1e-4, 1e-1)`` of an experiment file as a knob of the search."""

from __future__ import annotations

import math
import re
from typing import Literal

from pfray.errors import shown
from pfray.space import Knob

FORM = "uniform(low, high), loguniform(low, high), or integers(low, high) with both ends allowed"
_NUMBER = r"\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*"
_RANGE = re.compile(rf"\s*(uniform|loguniform|integers)\s*\({_NUMBER},{_NUMBER}\)\s*")


def check_range(text: str) -> str:
    """``text`` unchanged. Raises ValueError if it is no range."""
    as_knob("setting", text, None)
    return text


def as_knob(name: str, text: str, default: float | None) -> Knob:
    """The knob of a setting. default: the setting's value, clipped to the range; None for the lower end.

    Raises ValueError if ``text`` is no range.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(text)} is no range. Allowed: {FORM}")
    kind, low, high = match[1], float(match[2]), float(match[3])
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{shown(text)}: an end is infinite. Remedy: finite numbers")
    if low >= high:
        raise ValueError(f"{shown(text)}: the lower end is not below the upper one. Allowed: {FORM}")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"{shown(text)}: a logarithmic range is above 0. Remedy: a lower end above 0, or uniform(...)")
    if kind == "integers" and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"{shown(text)}: the ends are not whole. Remedy: whole numbers, or uniform(...)")
    scale: Literal["log", "linear"] = "log" if kind == "loguniform" else "linear"
    value = low if default is None else min(max(default, low), high)
    return Knob(name, low, high, scale=scale, integer=kind == "integers", kind="setting", default=value)
