"""Random plans around the uniform one: the baseline of every search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from pfray.search.base import PlanSearcher
from pfray.space import Plan


@dataclass(frozen=True)
class Settings:
    """spread: standard deviation of each position around the uniform plan's, as a share of the knob's range."""

    spread: Annotated[float, Field(gt=0, le=1)] = 0.15


class Random(PlanSearcher):
    settings_type = Settings
    origin = "random"

    def ask(self) -> Plan:
        return self.space.decode(self.center + self.settings.spread * self.rng.standard_normal(len(self.space)))
