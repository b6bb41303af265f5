"""Allocation without search: minimizes the sum of the knobs' errors under the target, by a Lagrange multiplier.

Notation: knob l at the value v_l has the relative error e_l(v_l), so it keeps the share 1 - e_l of its signal; c(v) is
the cost of the whole plan. Maximizing the product of the kept shares means minimizing sum_l -log(1 - e_l(v_l)). For
small errors this is their plain sum, but it makes further compression of a nearly destroyed layer more expensive.

Under c(v) <= C, the sum plus m c(v) is minimized for a multiplier m >= 0. If c is a sum over the knobs, each knob is
minimized separately, and the m that just meets C gives the best plan on the curves' lower convex hulls (Everett 1963,
"Generalized Lagrange multiplier method"). If knobs share their cost (the two sides of a convolution), c is linearized
into such a sum around the last plan, and the step is repeated.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pfray.search.base import PlanSearcher
from pfray.space import CompressionSpace, Limits, Plan
from pfray.units import AT_LEAST
from pfray.utils.settings import NoSettings

# Relative errors of each knob, ``(G,)``, at evenly spaced positions from 0 (most compressed) to 1.
Curves = Mapping[str, np.ndarray]

ROUNDS = 8


class Allocate(PlanSearcher):
    """Proposes nothing: its one plan is already the first plan of every search."""

    settings_type = NoSettings
    open_ended = False


def allocate_plan(space: CompressionSpace, curves: Curves, limits: Limits) -> Plan:
    """Plan of least error that meets the limits. curves: ``Algorithm.error_curves``; knobs without stay uniform.

    Raises InfeasibleTarget if no plan meets the limits.
    """
    if separate := space.separate(limits):
        plan = space.uniform(limits)
        for part, own in separate:
            plan.update(allocate_plan(part, {name: curves[name] for name in part.names if name in curves}, own))
        return plan
    uniform = space.encode(space.uniform(limits))
    chosen = [index for index, knob in enumerate(space.knobs) if knob.name in curves]
    grids = [np.linspace(0.0, 1.0, len(curves[space.names[index]])) for index in chosen]
    errors = [-np.log(np.maximum(1e-6, 1 - np.asarray(curves[space.names[index]]))) for index in chosen]
    whole = uniform.copy()
    whole[chosen] = 1.0
    best, best_error = uniform, np.inf
    # Two starts, because with shared costs the steps end in the nearest local minimum.
    for positions in (uniform, whole):
        last_error = np.inf
        for _ in range(ROUNDS):
            costs = [_cost_along(space, positions, i, grid, limits) for i, grid in zip(chosen, grids, strict=True)]
            positions = _least_error(space, positions, chosen, grids, errors, costs, limits)
            error = sum(np.interp(positions[i], g, e) for i, g, e in zip(chosen, grids, errors, strict=True))
            if error < best_error - 1e-12:
                best, best_error = positions, error
            if error >= last_error - 1e-12:
                break
            last_error = error
    return space.fit_to_target(space.decode(best), limits)


def _cost_along(
    space: CompressionSpace, positions: np.ndarray, index: int, grid: np.ndarray, limits: Limits
) -> np.ndarray:
    """Costs ``(G,)`` of the plan with one knob moved over its grid, relative to the limits and summed over them."""
    moved = positions.copy()
    costs = np.empty(len(grid))
    for place, position in enumerate(grid):
        moved[index] = position
        plan_costs = space.costs_at(moved)
        costs[place] = sum((-1 if u in AT_LEAST else 1) * plan_costs[u] / abs(limit) for u, limit in limits.items())
    return costs


def _least_error(
    space: CompressionSpace,
    positions: np.ndarray,
    chosen: list[int],
    grids: list[np.ndarray],
    errors: list[np.ndarray],
    costs: list[np.ndarray],
    limits: Limits,
) -> np.ndarray:
    """Positions ``(L,)`` of least error for the smallest multiplier that meets the limits, by bisection."""

    def at(multiplier: float) -> np.ndarray:
        found = positions.copy()
        for index, grid, error, cost in zip(chosen, grids, errors, costs, strict=True):
            found[index] = grid[np.argmin(error + multiplier * cost)]
        return found

    low, high = 1e-12, 1e12
    for _ in range(80):
        middle = float(np.sqrt(low * high))
        if space.meets(space.decode(at(middle)), limits):
            high = middle
        else:
            low = middle
    return at(high)
