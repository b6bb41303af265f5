"""Units of a target: names, directions and wording in one table. Amounts such as ``0.4x`` and ``800k``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pfray.errors import shown

_NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)"
_TEXT = re.compile(rf"\s*{_NUMBER}\s*([kKMGxX%])\s*")
# Texts whose meaning is clear, but which are written otherwise: a share in percent, and a decimal comma.
_PERCENT, _COMMA = re.compile(rf"{_NUMBER} ?%"), re.compile(r"([0-9]+),([0-9]+ ?\S*)")
_FACTORS = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True)
class Amount:
    """A number of a unit: absolute, or relative to the teacher's (``0.4x``).

    text: the amount as the user wrote it; empty for a number. ``0.40x`` is dumped unchanged, because a run is known by
    its experiment's text.
    """

    value: float
    relative: bool = False
    text: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str) -> Amount:
        """The amount of ``0.4x``, ``800k``, ``5M``, ``2G`` or ``75%``. Raises ValueError for any other text."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"{shown(text)} is not an amount: write 0.4x, 800k or 75%")
        number, suffix, text = float(match[1]), match[2], text.strip()
        if suffix == "%":
            # Rounded, because 0.7 / 100 is 0.006999999999999999.
            return cls(round(number / 100, 12), text=text)
        if suffix in "xX":
            return cls(number, relative=True, text=text)
        return cls(number * _FACTORS[suffix], text=text)

    def absolute(self, whole: float) -> float:
        """The absolute number. whole: the teacher's."""
        return self.value * whole if self.relative else self.value

    def plain(self) -> float | str:
        """A number, or a text such as ``0.4x``, as an experiment file has it; ``parse`` reads the text back."""
        return str(self) if self.relative else self.value

    def __str__(self) -> str:
        """As the user wrote it."""
        return self.text or np.format_float_positional(self.value, trim="-") + ("x" if self.relative else "")


def share_of_percent(value: Any) -> Any:
    """0.01 for ``1%``; any other value unchanged, for pydantic to validate."""
    with suppress(ValueError):
        if isinstance(value, str) and value.strip().endswith("%"):
            return Amount.parse(value).value
    return value


def number_text(value: float) -> str:
    """A number for a message: ``11,448,832``, ``0.25``."""
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:g}"


def size_text(size: float) -> str:
    """Bytes in MB (10^6) or kB (10^3)."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def latency_text(milliseconds: float) -> str:
    """Milliseconds, to 0.1 ms, below 10 ms to 0.01 ms and below 1 ms to 0.001 ms."""
    digits = 1 if milliseconds >= 10 else 2 if milliseconds >= 1 else 3
    return f"{milliseconds:.{digits}f} ms"


@dataclass(frozen=True)
class Unit:
    """A unit that a target may limit.

    field: field of a Measurement that represents the unit in scores. title: the unit's own quantity, as a label.
    noun: the limited quantity in words. text(value): a number of the unit in words.
    at_least: a plan needs at least the limit; otherwise at most the limit.
    suffixes: allowed last characters of an amount; ``x`` allows relative amounts.
    word: pattern of the unit's own name, which may follow a number: ``60kB``, ``8bit``.
    allowed: range of values in words. allows(value): True inside it. counted: a number of the unit is 1 or more.
    """

    name: str
    field: str
    title: str
    noun: str
    text: Callable[[float], str] = "{:,.0f}".format
    at_least: bool = False
    suffixes: str = "kKMGxX"
    word: str = ""
    allowed: str = "an amount is above 0, and finite"
    allows: Callable[[float], bool] = lambda value: 0 < value < math.inf
    counted: bool = False

    @property
    def relative(self) -> bool:
        """True if amounts may be relative to the teacher's."""
        return "x" in self.suffixes

    def amount(self, value: Any) -> Amount:
        """The amount that an experiment file gives: a number, or a text. Raises ValueError for any other value."""
        amount = value if isinstance(value, Amount) else self._read(value)
        if amount is None and self.relative:
            meant = _corrected(value)
            raise ValueError(
                f"{shown(value)} is not an amount: write 0.4x (of the teacher's) or a count such as 800k"
                + (f". Did you mean '{meant}'?" if meant else "")
            )
        if amount is None or not self.allows(amount.value) or (amount.relative and not self.relative):
            raise ValueError(f"{shown(value)} is not allowed: {self.allowed}")
        if self.counted and not amount.relative and amount.value < 1:
            raise ValueError(
                f"{shown(value)} is not allowed: a count is 1 or more. Did you mean '{amount.value:g}x', a share?"
            )
        return amount

    def _read(self, value: Any) -> Amount | None:
        """The amount of a number or a text; None for values of another form."""
        if isinstance(value, str):
            text = value.strip()
            number = re.sub(rf"[ -]?(?:{self.word})$", "", text) if self.word else text
            if number != text and re.fullmatch(_NUMBER, number):
                return Amount(float(number), text=text)
            if number.endswith(tuple(self.suffixes) or "\0") and _TEXT.fullmatch(number):
                return replace(Amount.parse(number), text=text)
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            return Amount(float(value))
        except OverflowError:  # a whole number of hundreds of digits
            return Amount(math.inf)

    def limit(self, amount: Amount) -> str:
        """The limit in words, such as ``at most 0.4x params``."""
        number = str(amount) if amount.relative else self.text(amount.value)
        return f"{'' if self.at_least else 'at most '}{number} {self.noun}"


def _corrected(value: Any) -> str:
    """The share that a user may have meant, as it is written; empty if none is near."""
    text = value.strip() if isinstance(value, str) else ""
    if match := _PERCENT.fullmatch(text):
        return f"{float(match[1]) / 100:g}x"
    return f"{match[1]}.{match[2]}" if (match := _COMMA.fullmatch(text)) else ""


UNITS = {
    unit.name: unit
    for unit in (
        Unit(
            "sparsity", "nonzero_params", "sparsity (share of zeros in the layers' weights)", "sparsity",
            lambda share: f"{100 * share:.4g} %", at_least=True, suffixes="%",
            allowed="a share is above 0 and below 1, such as 0.75 or 75%", allows=lambda share: 0 < share < 1,
        ),
        Unit("params", "nonzero_params", "parameters that are not zero", "params", counted=True),
        Unit("macs", "macs", "MACs (multiply-adds of one input)", "MACs", counted=True),
        Unit(
            "bits", "stored_bits", "bits a weight (mean over the quantized layers)", "bits a weight",
            "{:.4g}".format, suffixes="", word="bits?",
            allowed="bits are a number from 1 to 32, such as 8", allows=lambda bits: 1 <= bits <= 32,
        ),
        Unit(
            "size_bytes", "stored_bits", "size (bytes of all parameters)", "size", size_text, counted=True, word="B"
        ),
        Unit("latency_ms", "macs", "latency (ms of the .tflite on one thread)", "latency", latency_text, word="ms"),
    )
}  # fmt: skip

# Units with a lower limit. All other costs have an upper limit.
AT_LEAST = frozenset(name for name, unit in UNITS.items() if unit.at_least)
