"""The task's metric, as it is printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PrintedMetric:
    """name: of the metric. is_share: True if it is a share of 1, printed in percent where it is within 0..1.

    Measurements hold the metric as ``accuracy``, where higher is always better. Of one where lower is better they hold
    the negative, which is turned back here.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    is_share: bool = True

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> PrintedMetric:
        """The metric of a summary; the default for what an earlier version did not write."""
        flags = {key: record[key] for key in ("higher_is_better", "is_share") if isinstance(record.get(key), bool)}
        return cls(str(record.get("name") or cls.name), **flags)

    def value(self, measured: float) -> float:
        """The metric, with its own sign, of a measurement's ``accuracy``."""
        return measured if self.higher_is_better else 0.0 - measured  # no minus before a 0

    def text(self, measured: float, digits: int = 1) -> str:
        """The metric in words. digits: decimals of a percentage."""
        value = self.value(measured)
        return f"{100 * value:.{digits}f} %" if self._in_percent(value) else f"{value:.4g}"

    def difference(self, measured: float, reference: float) -> str:
        """By how much a measurement differs from a reference, in words."""
        value = self.value(measured)
        change = value - self.value(reference)
        return f"{100 * change:+.2f} points" if self._in_percent(value) else f"{change:+.4g}"

    @property
    def title(self) -> str:
        """The name, and the direction if it is the unusual one."""
        return self.name if self.higher_is_better else f"{self.name} (lower is better)"

    def _in_percent(self, value: float) -> bool:
        return self.is_share and 0 <= value <= 1
