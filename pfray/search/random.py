"""Random plans around the first one (``allocate``, else uniform): the baseline of every search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from pfray.search.base import PlanSearcher
from pfray.space import Plan


@dataclass(frozen=True)
class Settings:
    """spread: standard deviation of a plan's total move from the first plan. Per knob, as a share of its range, it is
    divided by the square root of the number of knobs, so that the distance does not grow with their number.
    """

    spread: Annotated[float, Field(gt=0, le=10)] = 0.4


class Random(PlanSearcher):
    settings_type = Settings

    def ask(self) -> Plan:
        return self.sample_around(self.center, self.settings.spread)
