"""The same value for every knob: the baseline that a search has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from pfray.search.base import PlanSearcher
from pfray.space import Plan


@dataclass(frozen=True)
class Settings:
    """None are needed."""


class Uniform(PlanSearcher):
    """Its one plan is the first plan of every search, so there is nothing left to ask."""

    settings_type = Settings
    open_ended = False

    def ask(self) -> Plan | None:
        return None
