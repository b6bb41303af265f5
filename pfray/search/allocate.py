"""The plan that needs no search: the knobs' errors, added up, are least under the target (a Lagrange multiplier).

Notation: knob l at the value v_l has the relative error e_l(v_l), so it keeps the share 1 - e_l of its signal; c(v) is
the cost of the whole plan. The product of the shares that all layers keep is largest where sum_l -log(1 - e_l(v_l)) is
least; that is the plain sum of the errors while they are small, and does not call a layer that lost nearly all as cheap
to compress further as the sum would.

Minimizing it under c(v) <= C is, for each multiplier m >= 0, minimizing it plus m c(v); where c is a sum over the
knobs, each knob is chosen by itself, and the m that just meets C gives the best plan on the curves' lower convex hulls
(Everett 1963, "Generalized Lagrange multiplier method"). Where knobs share their cost (the two sides of a convolution),
c is taken as such a sum around the last plan, and the step is repeated.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pfray.search.base import NoSettings, PlanSearcher
from pfray.space import CompressionSpace, Limits, Plan
from pfray.units import AT_LEAST

# The relative error of each knob ``(G,)`` at evenly spaced positions from 0 (most compressed) to 1.
Curves = Mapping[str, np.ndarray]

ROUNDS = 8


class Allocate(PlanSearcher):
    """Its one plan is the first plan of every search, so there is nothing left to ask."""

    settings_type = NoSettings
    origin = "allocate"
    open_ended = False


def allocate_plan(space: CompressionSpace, curves: Curves, limits: Limits) -> Plan:
    """The plan of least error that meets the limits. ``curves``: ``Learner.error_curves``; other knobs stay uniform.

    Raises InfeasibleTarget where no plan meets the limits.
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
    # From both, because where knobs share their cost the steps end in the nearest plan that is better than its like.
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
    """``(G,)`` costs of the plan with one knob moved over its grid, relative to the limits and summed over them."""
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
    """Positions of the least error for the smallest multiplier, found by bisection, that meets the limits."""

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
