"""Compresses larger layers more: ``heurist`` of PocketFlow's weight sparsification (Wu et al. 2018).

Notation: layer l has n_l parameters and the sparsity s_l. PocketFlow takes (``ws_prune_ratio_prtl: heurist``)

    s_l = alpha log(n_l),

with alpha such that sum_l s_l n_l is the desired share of all weights. Here s_l is also limited by its knob, where
PocketFlow may ask for more than all weights of a layer; alpha compensates, found by bisection on the exact cost of the
plan.

PocketFlow has the rule for weight sparsity only. For other knobs the distance of the value from its uncompressed end is
alpha log(n_l), in the knob's own unit: the removed share of channels, or the removed bits. For sparsity, whose
uncompressed end is 0, this is s_l. In a pipeline the unit is the widest range of the learner.
"""

from __future__ import annotations

import numpy as np

from pfray.search.base import PlanSearcher
from pfray.space import CompressionSpace, Limits, Plan
from pfray.utils.settings import NoSettings

# Bisection steps of alpha: down to float64 precision.
ROUNDS = 60


def heuristic_plan(space: CompressionSpace, limits: Limits) -> Plan:
    """Plan of the module's rule that just meets the limits. Raises InfeasibleTarget if no plan does."""
    plan = space.uniform(limits)
    if separate := space.separate(limits):
        for part, own in separate:
            plan.update(heuristic_plan(part, own))
        return plan
    growth, most = _growth(space)
    ranges = {knob.name: (knob.full, knob.compressed - knob.full) for knob in space.knobs}

    def at(alpha: float) -> Plan:
        values = {}
        for name, own in growth.items():
            full, way = ranges[name]
            values[name] = full + np.copysign(min(alpha * own, abs(way)), way)
        return space.decode(space.encode({**plan, **values}))

    low, high = 0.0, most
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        low, high = (low, middle) if space.meets(at(middle), limits) else (middle, high)
    # Corrects for rounding to the knobs' values, and for a layer of one weight.
    return space.fit_to_target(at(high), limits)


def _growth(space: CompressionSpace) -> tuple[dict[str, float], float]:
    """(factor of alpha by knob, the alpha at which all knobs reach their compressed end)."""
    growth, largest = {}, 0.0
    for part in space.parts:
        knobs = [knob for knob in part.knobs if not knob.free]
        unit = max((abs(knob.full - knob.compressed) for knob in knobs), default=1.0)
        for knob in knobs:
            growth[knob.name] = unit * float(np.log(max(1.0, knob.facts["params"])))
            if growth[knob.name]:
                largest = max(largest, abs(knob.full - knob.compressed) / growth[knob.name])
    return growth, largest


class Heuristic(PlanSearcher):
    """Proposes nothing: its one plan is already among the first plans of every search."""

    settings_type = NoSettings
    open_ended = False
