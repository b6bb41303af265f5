"""Larger layers are compressed more (``heuristic`` of PocketFlow's weight sparsification, Wu et al. 2018)."""

from __future__ import annotations

import numpy as np

from pfray.search.base import NoSettings, PlanSearcher
from pfray.space import CompressionSpace, Limits, Plan


def heuristic_plan(space: CompressionSpace, limits: Limits) -> Plan:
    """The compression of a knob grows with the logarithm of its parameters, as far as the target asks.

    Positions are 1 - log(n_l) / log(n_max), the largest layer at its most compressed end, then moved onto the target.
    """
    positions = space.encode(space.uniform(limits))
    sizes = np.array([max(2.0, knob.facts["params"]) for knob in space.knobs if not knob.free])
    positions[~space.free] = 1 - np.log(sizes) / np.log(sizes.max())
    return space.fit_to_target(space.decode(positions), limits)


class Heuristic(PlanSearcher):
    """Its one plan is among the first plans of every search, so there is nothing left to ask."""

    settings_type = NoSettings
    origin = "heuristic"
    open_ended = False
