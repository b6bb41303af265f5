"""Larger layers are compressed more (``heuristic`` of PocketFlow's weight sparsification, Wu et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pfray.search.base import PlanSearcher
from pfray.space import CompressionSpace, Limits, Plan


@dataclass(frozen=True)
class Settings:
    """None are needed."""


def heuristic_plan(space: CompressionSpace, limits: Limits) -> Plan:
    """The compression of a knob grows with the logarithm of its parameters, as far as the target asks.

    Positions are 1 - log(n_l) / log(n_max), the largest layer at its most compressed end, then moved onto the target.
    """
    positions = space.encode(space.uniform(limits))
    bound = np.array([not knob.free for knob in space.knobs])
    sizes = np.array([max(2.0, knob.facts["params"]) for knob in space.knobs if not knob.free])
    positions[bound] = 1 - np.log(sizes) / np.log(sizes.max())
    return space.fit_to_target(space.decode(positions), limits)


class Heuristic(PlanSearcher):
    """Its one plan is among the first plans of every search, so there is nothing left to ask."""

    settings_type = Settings
    open_ended = False

    def ask(self) -> Plan | None:
        return None
