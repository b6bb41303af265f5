"""Allocation without search: minimizes the sum of the knobs' errors under the target, by a Lagrange multiplier.

Notation: knob l at the value v_l has the relative error e_l(v_l), so it keeps the share 1 - e_l of its signal; c(v) is
the cost of the whole plan. Maximizing the product of the kept shares means minimizing sum_l -log(1 - e_l(v_l)). For
small errors this is their plain sum, but it makes further compression of a nearly destroyed layer more expensive.

Under c(v) <= C, the sum plus m c(v) is minimized for a multiplier m >= 0. If c is a sum over the knobs, each knob is
minimized separately, and the m that just meets C gives the best plan on the curves' lower convex hulls (Everett 1963,
"Generalized Lagrange multiplier method"). If knobs share their cost (the two sides of a convolution), c is linearized
into such a sum around the last plan, and the step is repeated.

A layer that can be removed takes knobs inside it along (``CompressionSpace.taken_along``), so those are decided
together: without the layer its error, with it the least sum over the knobs inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

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
    taken = {i: others & {*chosen} for i, others in space.taken_along.items() if i in chosen}
    # Two starts, because with shared costs the steps end in the nearest local minimum.
    for positions in (uniform, whole):
        last_error = np.inf
        for _ in range(ROUNDS):
            knobs = {
                i: _Curve(grid, error, *_cost_along(space, _with_layers_of(positions, i, taken), i, grid, limits))
                for i, grid, error in zip(chosen, grids, errors, strict=True)
            }
            positions = _least_error(space, positions, knobs, taken, limits)
            error = sum(np.interp(positions[i], g, e) for i, g, e in zip(chosen, grids, errors, strict=True))
            if error < best_error - 1e-12:
                best, best_error = positions, error
            if error >= last_error - 1e-12:
                break
            last_error = error
    return space.fit_to_target(space.decode(best), limits)


class _Curve(NamedTuple):
    """Errors and costs ``(G,)`` of one knob over its grid of positions, and the cost at its present position."""

    grid: np.ndarray
    errors: np.ndarray
    costs: np.ndarray
    present: float


def _with_layers_of(positions: np.ndarray, index: int, taken: Mapping[int, set[int]]) -> np.ndarray:
    """``positions`` with all layers kept that would take the knob along."""
    around = [layer for layer, inside in taken.items() if index in inside]
    return np.where(np.isin(np.arange(len(positions)), around), 1.0, positions)


def _cost_along(
    space: CompressionSpace, positions: np.ndarray, index: int, grid: np.ndarray, limits: Limits
) -> tuple[np.ndarray, float]:
    """Costs ``(G,)`` of the plan with one knob moved over its grid, and of the plan itself, relative to the limits and
    summed over them."""

    def cost(place: float) -> float:
        moved = positions.copy()
        moved[index] = place
        costs = space.costs_at(moved)
        return sum((-1 if u in AT_LEAST else 1) * costs[u] / abs(limit) for u, limit in limits.items())

    return np.array([cost(place) for place in grid]), cost(positions[index])


def _least_error(
    space: CompressionSpace,
    positions: np.ndarray,
    knobs: Mapping[int, _Curve],
    taken: Mapping[int, set[int]],
    limits: Limits,
) -> np.ndarray:
    """Positions ``(L,)`` of least error for the smallest multiplier that meets the limits, by bisection.

    knobs: by index. taken: the knobs that a layer takes along, by its index.
    """
    within = {i: others - {each for j in others for each in taken.get(j, ())} for i, others in taken.items()}
    outermost = [i for i in knobs if not any(i in others for others in taken.values())]

    def decide(index: int, multiplier: float, found: np.ndarray, layers: Mapping[int, float]) -> float:
        """Set the least position of a knob, and of those that it takes along; returns their objective, less the cost
        at the present position."""
        own = knobs[index]
        objective = own.errors + multiplier * (own.costs - own.present)
        if index in taken:
            objective[-1] += sum(decide(inner, multiplier, found, layers) for inner in within[index])
        place = int(np.argmin(objective)) if index not in layers else int(np.argmin(abs(own.grid - layers[index])))
        found[index] = own.grid[place]
        if index in taken and place < len(own.grid) - 1:
            found[[*taken[index]]] = 1.0
        return float(objective[place])

    def at(multiplier: float, layers: Mapping[int, float]) -> np.ndarray:
        found = positions.copy()
        for index in outermost:
            decide(index, multiplier, found, layers)
        return found

    def bisect(layers: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
        """Positions on both sides of the limits, within first. layers: positions of the layers that are decided."""
        low, high = 1e-12, 1e12
        for _ in range(80):
            middle = float(np.sqrt(low * high))
            if space.meets(space.decode(at(middle, layers)), limits):
                high = middle
            else:
                low = middle
        return at(high, layers), at(low, layers)

    def error(found: np.ndarray) -> float:
        return sum(float(np.interp(found[i], own.grid, own.errors)) for i, own in knobs.items())

    within_limits, beyond = bisect({})
    if not taken:
        return within_limits
    # A layer that goes leaves a gap below the limits; the other knobs may fill it better with the layer kept.
    kept, _ = bisect({index: float(beyond[index]) for index in taken})
    candidates = [found for found in (within_limits, kept) if space.meets(space.decode(found), limits)]
    return min(candidates, key=error, default=within_limits)
