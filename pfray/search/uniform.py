"""The same value for every knob: the baseline that a search has to beat."""

from __future__ import annotations

from pfray.search.base import NoSettings, PlanSearcher


class Uniform(PlanSearcher):
    """Its one plan is the first plan of every search, so there is nothing left to ask."""

    settings_type = NoSettings
    origin = "uniform"
    open_ended = False
