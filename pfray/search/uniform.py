"""The same value for every knob: the baseline of every search."""

from __future__ import annotations

from pfray.search.base import PlanSearcher
from pfray.utils.settings import NoSettings


class Uniform(PlanSearcher):
    """Proposes nothing: its one plan is already among the first plans of every search."""

    settings_type = NoSettings
    open_ended = False
