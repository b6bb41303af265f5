"""Search space of a model under one learner: knobs, plans and their exact costs. Weights are not touched.

Notation: a plan gives each of L knobs a value. A ``position`` is a place on a knob's range, from 0 at the most
compressed end to 1 at the uncompressed end. The positions of a plan form the ``(L,)`` vector that searchers work in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from pfray.errors import InfeasibleTarget
from pfray.units import AT_LEAST, number_text

Plan = dict[str, float]
Limits = Mapping[str, float]

# Kinds of knobs. layer: keep or remove it. int8_switch: 8 bits on or off. setting: the value of a searched setting,
# which costs nothing and which no target moves. The framework itself uses only the kinds int8_switch and setting.
Kind = Literal["", "keep_ratio", "sparsity", "bits", "int8_switch", "layer", "depth", "width", "setting"]
# Facts of a layer's knob: outputs, inputs, height and width of the input, stride, kernel size.
SHAPE = ("n", "c", "h", "w", "s", "k")


@dataclass(frozen=True)
class Knob:
    """One decision of the search.

    compressed, full: the values at the most and the least compressed end.
    scale: ``linear``; ``log``; or ``log_density`` for a sparsity s, whose position is linear in log(1 - s): 0.90 to
        0.95 is then as far as 0.0 to 0.5, because both halve the density.
    facts: static numbers of the layer or group (params, macs, ...), for heuristics and observations.
    choices: allowed values, both ends included; empty allows every value (or whole number) of the range.
    kind: the learner's word for the decision; empty if the framework need not know.
    default: value of a setting (a learning rate) before anything is learned about it.
    """

    name: str
    compressed: float
    full: float
    scale: Literal["linear", "log", "log_density"] = "linear"
    integer: bool = False
    facts: Mapping[str, float] = field(default_factory=dict)
    choices: tuple[float, ...] = ()
    kind: Kind = ""
    default: float | None = None

    def __post_init__(self) -> None:
        if self.compressed == self.full:
            raise ValueError(f"knob {self.name}: both ends are {self.full}")
        if self.choices and {self.compressed, self.full} != {min(self.choices), max(self.choices)}:
            raise ValueError(f"knob {self.name}: the choices do not end at {self.compressed} and {self.full}")
        if self.scale == "log" and min(self.compressed, self.full) <= 0:
            raise ValueError(f"knob {self.name}: a log scale needs values above 0, not {self.compressed}, {self.full}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"knob {self.name}: unknown kind {self.kind!r}. Allowed: {', '.join(get_args(Kind)[1:])}")
        if self.free == (self.default is None):
            raise ValueError(f"knob {self.name}: a setting, and no other knob, has a default")
        if self.scale == "log_density" and not 0 <= self.full < self.compressed < 1:
            raise ValueError(
                f"knob {self.name}: a sparsity range needs 0 <= full < compressed < 1, "
                f"not {self.full} and {self.compressed}"
            )

    @property
    def free(self) -> bool:
        """True for a setting: it costs nothing, so no target moves it."""
        return self.kind == "setting"


@dataclass(frozen=True)
class CompressionSpace:
    """Ordered knobs of one model under one learner, or under several (``PipelineSpace``).

    costs_of(values): exact costs, by unit, for the values of all knobs except settings, in order. It must be monotone:
        compressing one knob further never raises a cost.
    weights_left(values): remaining weights, by layer that loses some; None if no plan removes weights.
    """

    knobs: tuple[Knob, ...]
    costs_of: Callable[[np.ndarray], dict[str, float]]
    weights_left: Callable[[np.ndarray], dict[str, float]] | None = None

    def __post_init__(self) -> None:
        if len({knob.full > knob.compressed for knob in self.knobs if not knob.free}) > 1:
            raise ValueError("in one space either larger values compress more, for all knobs, or smaller ones do")

    def __len__(self) -> int:
        return len(self.knobs)

    @cached_property
    def names(self) -> list[str]:
        """Names of the knobs, in order."""
        return [knob.name for knob in self.knobs]

    @cached_property
    def free(self) -> np.ndarray:
        """Mask ``(L,)`` of the knobs that are settings."""
        return self.of_kind("setting")

    def of_kind(self, kind: Kind) -> np.ndarray:
        """Mask ``(L,)`` of the knobs of one kind."""
        return np.array([knob.kind == kind for knob in self.knobs], dtype=bool)

    @cached_property
    def layers_beside_others(self) -> np.ndarray:
        """Mask ``(L,)`` of the knobs that keep or remove a layer, if there are others than such and settings."""
        layers = self.of_kind("layer")
        others = ~(layers | self.free | self.of_kind("int8_switch"))
        return layers & others.any()

    @property
    def parts(self) -> tuple[CompressionSpace, ...]:
        """Spaces of the single learners: here this one alone."""
        return (self,)

    @cached_property
    def taken_along(self) -> dict[int, set[int]]:
        """Indices of the knobs that change nothing without a layer, by index of the layer's knob."""
        return {}

    def separate(self, limits: Limits) -> list[tuple[CompressionSpace, Limits]]:
        """Parts that can be planned independently, with their limits; empty if all knobs share the limits."""
        return []

    def with_free(self, knobs: tuple[Knob, ...]) -> CompressionSpace:
        """The same space with ``knobs``, which are settings, appended."""
        return replace(self, knobs=(*self.knobs, *knobs))

    def costs(self, plan: Plan) -> dict[str, float]:
        """Exact costs of a plan, by unit."""
        return self._costs(self._values(plan))

    def costs_at(self, positions: np.ndarray) -> dict[str, float]:
        """Exact costs of the plan at ``positions`` ``(L,)``, by unit."""
        return self._costs(self._at(positions))

    def encode(self, plan: Plan) -> np.ndarray:
        """Positions ``(L,)`` in 0..1 of a plan's values."""
        start, stop = self._ends
        return np.clip((self._warp(self._values(plan)) - start) / (stop - start), 0.0, 1.0)

    def decode(self, positions: np.ndarray) -> Plan:
        """The plan at ``positions`` ``(L,)``, clipped to 0..1."""
        return dict(zip(self.names, self._at(positions).tolist(), strict=True))

    def reachable(self, unit: str) -> tuple[float, float]:
        """(lowest, highest) cost of all plans, in ``unit``."""
        ends = [self.costs_at(np.full(len(self), p))[unit] for p in (0.0, 1.0)]
        return min(ends), max(ends)

    def meets(self, plan: Plan, limits: Limits) -> bool:
        """True if a plan keeps every limit."""
        return keeps_limits(self.costs(plan), limits)

    def fit_to_target(self, plan: Plan, limits: Limits) -> Plan:
        """The plan nearest to ``plan`` that meets the limits and uses them up.

        All positions except settings move by one common step, clipped to 0..1. Of all moves that reach the target,
        this one minimizes the largest change. Raises InfeasibleTarget if no plan meets the limits.
        """
        start = self.encode(plan)
        return self._least_compressed(lambda step: self._at(start + np.where(self.free, 0.0, step)), -1.0, 1.0, limits)

    def uniform(self, limits: Limits) -> Plan:
        """The plan that meets the limits with one value for all knobs, as far as each knob's range permits.

        Raises InfeasibleTarget if no plan meets the limits.
        """
        defaults = np.array([knob.default or 0.0 for knob in self.knobs])
        values = [v for k in self.knobs if not k.free for v in (k.compressed, k.full)]
        if not values:  # no knob moves; the limits are met or not
            return self._least_compressed(lambda _: self._allowed(defaults), 0.0, 0.0, limits)
        bound = next(knob for knob in self.knobs if not knob.free)
        low, high = min(values), max(values)
        ends = (low, high) if bound.full > bound.compressed else (high, low)

        def values_at(value: float) -> np.ndarray:
            return self._allowed(np.where(self.free, defaults, value))

        return self._least_compressed(values_at, *ends, limits)

    def _least_compressed(
        self, values_at: Callable[[float], np.ndarray], compressed: float, full: float, limits: Limits
    ) -> Plan:
        """Bisect between a compressed and a full end for the last point that still meets the limits."""
        if not keeps_limits(self._costs(values_at(compressed)), limits):
            self._refuse(limits)
        if keeps_limits(self._costs(values_at(full)), limits):
            compressed = full
        for _ in range(60):
            if compressed == full:
                break
            middle = (compressed + full) / 2
            if keeps_limits(self._costs(values_at(middle)), limits):
                compressed = middle
            else:
                full = middle
        values = self._fill(values_at(compressed), values_at(full), limits)
        return dict(zip(self.names, values.tolist(), strict=True))

    def _fill(self, values: np.ndarray, larger: np.ndarray, limits: Limits) -> np.ndarray:
        """``values``, with as many of ``larger`` as the limits allow. The two differ by rounding only.

        Knobs with few values would otherwise jump together and leave much of a limit unused.
        """
        jumps = np.flatnonzero(self._stepped & (values != larger)).tolist()

        def moved(start: np.ndarray, index: int) -> np.ndarray:
            return np.where(np.arange(len(start)) == index, larger, start)

        def excess(index: int) -> float:
            costs = self._costs(moved(values, index))
            return max((costs[u] / limit - 1) * (-1 if u in AT_LEAST else 1) for u, limit in limits.items())

        for index in sorted(jumps, key=excess):
            if keeps_limits(self._costs(moved(values, index)), limits):
                values = moved(values, index)
        return values

    def refuse_out_of_reach(self, limits: Limits, written: Mapping[str, str]) -> None:
        """Raise InfeasibleTarget for a limit that no plan reaches. written: the limits for the message, by unit."""
        for unit, limit in limits.items():
            low, high = self.reachable(unit)
            if not keeps_limits({unit: high if unit in AT_LEAST else low}, {unit: limit}):
                raise InfeasibleTarget(
                    f"target.{unit}: {written[unit]} is out of reach; this model and learner reach {number_text(low)} "
                    f"to {number_text(high)}. Remedy: choose a value in that range, or widen what the learner may "
                    "change"
                )

    def _refuse(self, limits: Limits) -> None:
        written = {unit: number_text(limit) for unit, limit in limits.items()}
        self.refuse_out_of_reach(limits, written)
        raise InfeasibleTarget(
            f"no plan meets {', '.join(f'target.{unit}: {text}' for unit, text in written.items())} together. "
            "Remedy: give one of them up"
        )

    def _values(self, plan: Plan) -> np.ndarray:
        return np.array([plan[name] for name in self.names], dtype=float)

    def _costs(self, values: np.ndarray) -> dict[str, float]:
        return self.costs_of(values[~self.free])

    # Arrays ``(L,)`` of the knobs, cached because searchers ask for thousands of costs.

    @cached_property
    def _integer(self) -> np.ndarray:
        return np.array([knob.integer for knob in self.knobs], dtype=bool)

    @cached_property
    def _stepped(self) -> np.ndarray:
        return np.array([not knob.free and (knob.integer or bool(knob.choices)) for knob in self.knobs], dtype=bool)

    @cached_property
    def _choices(self) -> np.ndarray:
        """``(L, most)``, padded with inf; ``(L, 0)`` if no knob has choices."""
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
        """Nearest allowed values of the knobs."""
        if self._choices.size:
            nearest = np.abs(self._choices - values[:, None]).argmin(1)
            chosen = self._choices[np.arange(len(values)), nearest]
            values = np.where(np.isfinite(self._choices[:, 0]), chosen, values)
        return np.clip(np.where(self._integer, np.rint(values), values), *self._range)


def keeps_limits(costs: Mapping[str, float], limits: Limits) -> bool:
    """True if costs keep every limit."""
    return all(costs[u] >= limit if u in AT_LEAST else costs[u] <= limit for u, limit in limits.items())
