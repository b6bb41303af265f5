"""Joint space of the learners of a pipeline: all their knobs, and the cost of the model after all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from pfray.errors import ConfigError
from pfray.measure.cost import stored_bytes
from pfray.space import CompressionSpace, Limits, Plan


@dataclass(frozen=True)
class PipelineSpace(CompressionSpace):
    """Knobs of several learners. A limit in a unit that only one learner offers is met by that learner's knobs alone.

    parts: the learners' own spaces, with the same knob names. Learners that change the same costs are one part, whose
    own parts they are.
    idle(values): mask ``(L,)`` of the knobs that change nothing, such as those of a removed block; None if none can be.
    """

    parts: tuple[CompressionSpace, ...] = ()
    idle: Callable[[np.ndarray], np.ndarray] | None = None

    def separate(self, limits: Limits) -> list[tuple[CompressionSpace, Limits]]:
        """Parts with their own limits; empty if a limit is shared by several parts."""
        return [] if self._shared(limits) else self._own(limits)

    def fit_to_target(self, plan: Plan, limits: Limits) -> Plan:
        """The plan nearest to ``plan`` that meets the limits; each part is moved onto its own limits first.

        Knobs that change nothing in it are full. Raises InfeasibleTarget if no plan meets the limits.
        """
        for part, own in self._own(limits):
            plan = {**plan, **part.fit_to_target({name: plan[name] for name in part.names}, own)}
        return self.settled(super().fit_to_target(plan, limits) if self._shared(limits) else plan)

    def uniform(self, limits: Limits) -> Plan:
        """The plan that meets the limits with one value for all knobs of a part.

        Shared limits are met at one position for all knobs, with the 8-bit switches on. If there are other knobs,
        layers are removed only where those do not reach the limits. Raises InfeasibleTarget if no plan meets them.
        """
        plan = self.decode(np.where(self.free, 0.0, 1.0))
        plan.update({knob.name: knob.default for knob in self.knobs if knob.default is not None})
        for part, own in self._own(limits):
            plan.update(part.uniform(own))
        if not self._shared(limits):
            return plan
        switches, layers = self.of_kind("int8_switch"), self.layers_beside_others
        most = np.where(switches, 0.0, self.encode(plan))
        fixed = self.free | switches

        def values_at(place: float) -> np.ndarray:
            # With layers: 2 to 1 for the other knobs, then 1 to 0 for the layers.
            other = max(0.0, 2 * place - 1) if layers.any() else place
            wanted = np.where(layers, min(1.0, 2 * place), other)
            return self._at(np.where(fixed, most, np.minimum(wanted, most)))

        return self.settled(self._least_compressed(values_at, 0.0, 1.0, limits))

    def settled(self, plan: Plan) -> Plan:
        """The plan with the knobs that change nothing in it at their full end, so that equal models have one plan."""
        ends = np.array([knob.full for knob in self.knobs])
        values = self._values(plan)
        return dict(zip(self.names, np.where(self._idle(values), ends, values).tolist(), strict=True))

    @cached_property
    def taken_along(self) -> dict[int, set[int]]:
        found = {}
        for index in np.flatnonzero(self.of_kind("layer")).tolist():
            idle = self._idle(self._at(np.where(np.arange(len(self)) == index, 0.0, 1.0)))
            found[index] = {*np.flatnonzero(idle).tolist()}
        return {index: others for index, others in found.items() if others}

    def _idle(self, values: np.ndarray) -> np.ndarray:
        """Mask ``(L,)`` of the knobs that change nothing."""
        found, start = np.zeros(len(self), dtype=bool), 0
        if self.idle is not None:
            found[~self.free] = self.idle(values[~self.free])
        for part in self.parts:
            if isinstance(part, PipelineSpace):
                found[start : start + len(part)] |= part._idle(values[start : start + len(part)])
            start += len(part)
        return found

    def _own(self, limits: Limits) -> list[tuple[CompressionSpace, Limits]]:
        """Parts that are the only one to offer a limit's unit, with those limits."""
        shared = self._shared(limits)
        found = [
            (part, {unit: limit for unit, limit in limits.items() if unit in units and unit not in shared})
            for part, units in zip(self.parts, self._offered(), strict=True)
        ]
        return [(part, own) for part, own in found if own]

    def _shared(self, limits: Limits) -> list[str]:
        """Units of limits that no part, or more than one, offers."""
        offered = self._offered()
        return [unit for unit in limits if sum(unit in units for units in offered) != 1]

    def _offered(self) -> list[dict[str, float]]:
        return [part.costs_at(np.ones(len(part))) for part in self.parts]


def joint_space(
    spaces: Mapping[str, CompressionSpace], params: int, pairs: Mapping[str, PipelineSpace] | None = None
) -> PipelineSpace:
    """Joint space of learners that run in this order, with knobs named ``learner:knob`` and the costs of all.

    ``size_bytes``, the size after all learners, is offered if every learner offers it.

    params: parameters of the whole model. pairs: joint spaces of a learner, which is the key, and the one before it.
    Raises ConfigError if two learners change the same cost in another unit and are no pair.
    """
    pairs = pairs or {}
    parts: list[CompressionSpace] = []
    learners: list[str] = []  # the last one of each part
    for learner, space in spaces.items():
        if learner in pairs:
            parts[-1] = _named_pair(learners[-1], learner, pairs[learner])
            learners[-1] = learner
        else:
            parts.append(_named(learner, space))
            learners.append(learner)
    if len(parts) == 1 and isinstance(parts[0], PipelineSpace):
        return parts[0]
    offered = [part.costs_at(np.ones(len(part))) for part in parts]
    for unit in [unit for unit in offered[0] if unit != "size_bytes"]:
        rivals = [learner for learner, costs in zip(learners, offered, strict=True) if unit in costs]
        if len(rivals) > 1:
            raise ConfigError(
                f"learner: {' and '.join(rivals)} both change {unit}. Remedy: keep one of them; layers and channels go "
                "together if the layers come first, as in learner: [layer_removal, channel_pruned]"
            )
    sizes = None
    if all("size_bytes" in costs for costs in offered):
        quantized = (part for part, costs in zip(parts, offered, strict=True) if "bits" in costs)
        sizes = next(
            ({knob.name.partition(":")[2]: knob.facts["params"] for knob in part.knobs} for part in quantized), None
        )
    knobs = tuple(knob for part in parts for knob in part.knobs)
    return PipelineSpace(knobs, partial(_costs, parts=parts, params=params, sizes=sizes), parts=tuple(parts))


def _named(prefix: str, space: CompressionSpace) -> CompressionSpace:
    return replace(space, knobs=tuple(replace(knob, name=f"{prefix}:{knob.name}") for knob in space.knobs))


def _named_pair(first: str, second: str, pair: PipelineSpace) -> PipelineSpace:
    parts = tuple(_named(name, part) for name, part in zip((first, second), pair.parts, strict=True))
    return replace(pair, knobs=tuple(knob for part in parts for knob in part.knobs), parts=parts)


def _costs(
    values: np.ndarray, parts: Sequence[CompressionSpace], params: int, sizes: Mapping[str, float] | None
) -> dict[str, float]:
    """params: parameters of the whole model. sizes: weights of each quantized layer; None without ``size_bytes``."""
    costs: dict[str, float] = {}
    left: dict[str, float] = {}
    bits = values[:0]
    start = 0
    for part in parts:
        own = values[start : start + len(part)]
        start += len(part)
        found = part.costs_of(own)
        costs |= found
        if part.weights_left is not None:
            left |= part.weights_left(own)
        if "bits" in found:
            bits = own
    whole = costs.pop("size_bytes", None)
    if whole is not None and sizes is not None:
        weights = np.array([left.get(name, size) for name, size in sizes.items()])
        # Ranges and codebooks are counted with all channels present: an upper bound.
        qparam_bytes = whole - stored_bytes(params, np.array(list(sizes.values())), bits)
        costs["size_bytes"] = stored_bytes(int(costs.get("params", params)), weights, bits) + qparam_bytes
    return costs
