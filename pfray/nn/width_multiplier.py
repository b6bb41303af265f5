"""The width multiplier of a network (Howard et al. 2017, section 3.3), rounded to fast channel counts."""

from __future__ import annotations


def scaled(channels: int, width: float) -> int:
    """``width`` times the channels, rounded to a multiple of 8 and at least 8."""
    return max(8, int(channels * width + 4) // 8 * 8)


def check_width(width: float) -> None:
    """Raise ValueError unless ``0 < width <= 4``."""
    if not 0 < width <= 4:
        raise ValueError(f"width is {width}; allowed are numbers above 0 and up to 4")
