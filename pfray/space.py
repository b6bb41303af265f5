"""What can be decided about a model under one learner, and what every decision costs, without touching weights.

Notation: a plan gives each of L knobs a value. ``position`` is a knob's place on its range, from 0 at the most
compressed end to 1 at the uncompressed end; all of a plan's positions form the ``(L,)`` vector that searchers work in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from pfray.errors import InfeasibleTarget

Plan = dict[str, float]
Limits = Mapping[str, float]

# Of these a plan wants at least the limit; of every other cost at most the limit.
AT_LEAST = frozenset({"sparsity"})
# Facts of a knob that is named after a layer: outputs, inputs, height and width of the input, stride, kernel size.
SHAPE = ("n", "c", "h", "w", "s", "k")


@dataclass(frozen=True)
class Knob:
    """One decision of the search.

    compressed, full: the values at the most and the least compressed end.
    scale: ``linear``; ``log``; or ``log_density`` for a sparsity s, whose position is linear in log(1 - s): from 0.90
        to 0.95 is then as far as from 0.0 to 0.5, for both halve what is left.
    facts: static numbers of the layer or group (params, macs, ...), for heuristics and observations.
    free: a searched setting (a learning rate) and no part of the model: it costs nothing, so no target moves it.
    choices: the only values allowed, both ends among them; empty for every value (or whole number) of the range.
    default: the value of a free knob where nothing has been learned about it yet.
    """

    name: str
    compressed: float
    full: float
    scale: Literal["linear", "log", "log_density"] = "linear"
    integer: bool = False
    facts: Mapping[str, float] = field(default_factory=dict)
    choices: tuple[float, ...] = ()
    free: bool = False
    default: float | None = None

    def __post_init__(self) -> None:
        if self.compressed == self.full:
            raise ValueError(f"knob {self.name}: both ends are {self.full}")
        if self.choices and {self.compressed, self.full} != {min(self.choices), max(self.choices)}:
            raise ValueError(f"knob {self.name}: the choices do not end at {self.compressed} and {self.full}")
        if self.scale == "log" and min(self.compressed, self.full) <= 0:
            raise ValueError(f"knob {self.name}: a log scale needs values above 0, not {self.compressed}, {self.full}")
        if self.free == (self.default is None):
            raise ValueError(f"knob {self.name}: a free knob, and no other, has a default")
        if self.scale == "log_density" and not 0 <= self.full < self.compressed < 1:
            raise ValueError(
                f"knob {self.name}: a sparsity range needs 0 <= full < compressed < 1, "
                f"not {self.full} and {self.compressed}"
            )


@dataclass(frozen=True)
class CompressionSpace:
    """The ordered knobs of one model under one learner.

    costs_of(values): the exact cost, by unit, of the values of the knobs that are not free, in their order. It must be
        monotone: compressing one knob further never raises a cost.
    parts: of a space put together from several, those, with the same names of knobs. A limit in a unit that only one
        of them has is for its knobs alone to keep; no other knob is moved for it.
    weights_left(values): by layer, the weights that a plan leaves where it takes some; None where it never does.
    """

    knobs: tuple[Knob, ...]
    costs_of: Callable[[np.ndarray], dict[str, float]]
    parts: tuple[CompressionSpace, ...] = ()
    weights_left: Callable[[np.ndarray], dict[str, float]] | None = None

    def __post_init__(self) -> None:
        if len({knob.full > knob.compressed for knob in self.knobs if not knob.free}) > 1:
            raise ValueError("in one space either larger values compress more, for all knobs, or smaller ones do")

    def __len__(self) -> int:
        return len(self.knobs)

    @cached_property
    def names(self) -> list[str]:
        return [knob.name for knob in self.knobs]

    @cached_property
    def free(self) -> np.ndarray:
        """``(L,)`` booleans: the knobs that are searched settings, which cost nothing and which no target moves."""
        return np.array([knob.free for knob in self.knobs], dtype=bool)

    @property
    def switches(self) -> np.ndarray:
        """``(L,)`` booleans: the knobs that turn 8 bits on or off; shares that have two values are none."""
        return np.array([len(knob.choices) == 2 and min(knob.choices) > 1 for knob in self.knobs], dtype=bool)

    def with_free(self, knobs: tuple[Knob, ...]) -> CompressionSpace:
        """The same space with searched settings beside its own knobs."""
        return replace(self, knobs=(*self.knobs, *knobs))

    def costs(self, plan: Plan) -> dict[str, float]:
        """The exact cost of a plan, by unit."""
        return self._costs(self._values(plan))

    def costs_at(self, positions: np.ndarray) -> dict[str, float]:
        """The exact cost of the plan at ``positions`` ``(L,)``, by unit."""
        return self._costs(self._at(positions))

    def encode(self, plan: Plan) -> np.ndarray:
        """Positions ``(L,)`` in 0..1 of a plan's values."""
        start, stop = self._ends
        return np.clip((self._warp(self._values(plan)) - start) / (stop - start), 0.0, 1.0)

    def decode(self, positions: np.ndarray) -> Plan:
        """The plan at ``positions`` ``(L,)``; what lies outside 0..1 is clipped."""
        return dict(zip(self.names, self._at(positions).tolist(), strict=True))

    def reachable(self, unit: str) -> tuple[float, float]:
        """The lowest and the highest cost that any plan has, in ``unit``."""
        ends = [self.costs_at(np.full(len(self), p))[unit] for p in (0.0, 1.0)]
        return min(ends), max(ends)

    def meets(self, plan: Plan, limits: Limits) -> bool:
        """Whether a plan keeps every limit."""
        return within(self.costs(plan), limits)

    def fit_to_target(self, plan: Plan, limits: Limits) -> Plan:
        """The plan nearest to ``plan`` that meets the limits and wastes nothing of them.

        All positions but the free ones are moved by one common step, each stopping at the ends of its range: of all
        moves that reach the target this one has the smallest largest change. Raises InfeasibleTarget where no plan
        meets the limits. Of a space with parts each part is moved onto its own limits first.
        """
        for part, own in self.own_limits(limits):
            plan = {**plan, **part.fit_to_target({name: plan[name] for name in part.names}, own)}
        if self.parts and not self.shared_units(limits):
            return plan
        start = self.encode(plan)
        return self._least_compressed(lambda step: self._at(start + np.where(self.free, 0.0, step)), -1.0, 1.0, limits)

    def uniform(self, limits: Limits) -> Plan:
        """The plan that meets the limits with one value for all knobs (each knob's range permitting); of a space with
        parts, with one value for all knobs of a part."""
        if self.parts:
            return self._uniform_parts(limits)
        defaults = np.array([knob.default or 0.0 for knob in self.knobs])
        values = [v for k in self.knobs if not k.free for v in (k.compressed, k.full)]
        if not values:  # nothing can be decided; the limits are met or not
            return self._least_compressed(lambda _: self._allowed(defaults), 0.0, 0.0, limits)
        bound = next(knob for knob in self.knobs if not knob.free)
        low, high = min(values), max(values)
        ends = (low, high) if bound.full > bound.compressed else (high, low)

        def values_at(value: float) -> np.ndarray:
            return self._allowed(np.where(self.free, defaults, value))

        return self._least_compressed(values_at, *ends, limits)

    def _uniform_parts(self, limits: Limits) -> Plan:
        """Limits of all parts together are met at one position for all of them, but that a knob which can only be on or
        off is on."""
        plan = self.decode(np.where(self.free, 0.0, 1.0))
        plan.update({knob.name: knob.default for knob in self.knobs if knob.default is not None})
        for part, own in self.own_limits(limits):
            plan.update(part.uniform(own))
        if not self.shared_units(limits):
            return plan
        most = np.where(self.switches, 0.0, self.encode(plan))
        fixed = self.free | self.switches
        return self._least_compressed(lambda p: self._at(np.where(fixed, most, np.minimum(p, most))), 0.0, 1.0, limits)

    def own_limits(self, limits: Limits) -> list[tuple[CompressionSpace, Limits]]:
        """The parts that have limits of their own, with those."""
        offered = [(part, part.costs_at(np.ones(len(part)))) for part in self.parts]
        shared = self.shared_units(limits)
        found = [(part, {u: v for u, v in limits.items() if u in units and u not in shared}) for part, units in offered]
        return [(part, own) for part, own in found if own]

    def shared_units(self, limits: Limits) -> list[str]:
        """The units that no part, or more than one, has."""
        offered = [part.costs_at(np.ones(len(part))) for part in self.parts]
        return [unit for unit in limits if sum(unit in units for units in offered) != 1]

    def _least_compressed(
        self, values_at: Callable[[float], np.ndarray], compressed: float, full: float, limits: Limits
    ) -> Plan:
        """Bisect between a compressed and a full end for the last point that still meets the limits."""
        if not within(self._costs(values_at(compressed)), limits):
            self._refuse(limits)
        if within(self._costs(values_at(full)), limits):
            compressed = full
        for _ in range(60):
            if compressed == full:
                break
            middle = (compressed + full) / 2
            if within(self._costs(values_at(middle)), limits):
                compressed = middle
            else:
                full = middle
        values = self._fill(values_at(compressed), values_at(full), limits)
        return dict(zip(self.names, values.tolist(), strict=True))

    def _fill(self, values: np.ndarray, larger: np.ndarray, limits: Limits) -> np.ndarray:
        """Of two plans that only rounding keeps apart, the first, with as many of the other's values as the limits
        allow: knobs with few values all jump at once where they are moved together, and would leave much unused."""
        jumps = np.flatnonzero(self._stepped & (values != larger)).tolist()

        def moved(start: np.ndarray, index: int) -> np.ndarray:
            return np.where(np.arange(len(start)) == index, larger, start)

        def excess(index: int) -> float:
            costs = self._costs(moved(values, index))
            return max((costs[u] / limit - 1) * (-1 if u in AT_LEAST else 1) for u, limit in limits.items())

        for index in sorted(jumps, key=excess):
            if within(self._costs(moved(values, index)), limits):
                values = moved(values, index)
        return values

    def _refuse(self, limits: Limits) -> None:
        for unit, limit in limits.items():
            low, high = self.reachable(unit)
            if not within({unit: high if unit in AT_LEAST else low}, {unit: limit}):
                raise InfeasibleTarget(
                    f"target.{unit}: {limit:g} is out of reach; this model and learner reach {low:g} to {high:g}. "
                    f"Remedy: choose a value in that range, or widen what the learner may change"
                )
        raise InfeasibleTarget(
            f"no plan meets {', '.join(f'target.{unit}: {limit:g}' for unit, limit in limits.items())} together. "
            "Remedy: give one of them up"
        )

    def _values(self, plan: Plan) -> np.ndarray:
        return np.array([plan[name] for name in self.names], dtype=float)

    def _costs(self, values: np.ndarray) -> dict[str, float]:
        return self.costs_of(values[~self.free])

    # Of the knobs as arrays ``(L,)``, made once: searchers ask for thousands of costs.

    @cached_property
    def _integer(self) -> np.ndarray:
        return np.array([knob.integer for knob in self.knobs], dtype=bool)

    @cached_property
    def _stepped(self) -> np.ndarray:
        return np.array([not knob.free and (knob.integer or bool(knob.choices)) for knob in self.knobs], dtype=bool)

    @cached_property
    def _choices(self) -> np.ndarray:
        """``(L, most)``, filled up with inf; ``(L, 0)`` where no knob has any."""
        most = max((len(knob.choices) for knob in self.knobs), default=0)
        filled = [[*knob.choices, *[np.inf] * (most - len(knob.choices))] for knob in self.knobs]
        return np.array(filled, dtype=float).reshape(len(self.knobs), most)

    @cached_property
    def _scales(self) -> tuple[np.ndarray, np.ndarray]:
        scales = np.array([knob.scale for knob in self.knobs], dtype=str)
        return scales == "log_density", scales == "log"

    @cached_property
    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        ends = np.array([(k.compressed, k.full) for k in self.knobs], dtype=float).reshape(-1, 2)
        return ends.min(1), ends.max(1)

    @cached_property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        return (
            self._warp(np.array([k.compressed for k in self.knobs], dtype=float)),
            self._warp(np.array([k.full for k in self.knobs], dtype=float)),
        )

    def _warp(self, values: np.ndarray) -> np.ndarray:
        density, log = self._scales
        warped = np.where(density, np.log1p(-np.where(density, values, 0.0)), values)
        return np.where(log, np.log(np.where(log, values, 1.0)), warped)

    def _at(self, positions: np.ndarray) -> np.ndarray:
        (start, stop), (density, log) = self._ends, self._scales
        warped = start + np.clip(positions, 0.0, 1.0) * (stop - start)
        values = np.where(density, -np.expm1(np.where(density, warped, 0.0)), warped)
        values = np.where(log, np.exp(np.where(log, warped, 0.0)), values)
        return self._allowed(values)

    def _allowed(self, values: np.ndarray) -> np.ndarray:
        """The nearest values that the knobs can have."""
        if self._choices.size:
            nearest = np.abs(self._choices - values[:, None]).argmin(1)
            chosen = self._choices[np.arange(len(values)), nearest]
            values = np.where(np.isfinite(self._choices[:, 0]), chosen, values)
        return np.clip(np.where(self._integer, np.rint(values), values), *self._range)


def within(costs: Mapping[str, float], limits: Limits) -> bool:
    """Whether costs keep every limit."""
    return all(costs[u] >= limit if u in AT_LEAST else costs[u] <= limit for u, limit in limits.items())
