"""Keep ratios of channel groups, rounded to fast counts: settings, space and curves of all channel learners."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field
from torch import nn

from pfray.errors import ConfigError, UnsupportedModel
from pfray.measure.cost import stored_bytes
from pfray.nn.layers import without_skipped
from pfray.nn.structure_cache import once_for_structure
from pfray.pruning.channels.graph import ChannelGraph, ChannelGroup, channel_graph
from pfray.pruning.channels.prune import prune
from pfray.space import CompressionSpace, Knob, Plan
from pfray.task import Task, example_input

# A group is rounded to a multiple that leaves at least this many counts to choose from.
CHOICES = 4
# Points of an error curve.
POINTS = 65

_graphs: WeakKeyDictionary[nn.Module, tuple[Any, ChannelGraph]] = WeakKeyDictionary()


@dataclass(frozen=True)
class ChannelSettings:
    """Settings of every channel learner.

    round_to: channel counts are multiples of this, because kernels work on whole vectors; of less for a group that
        would have fewer than four counts to choose from. 1 allows every count. A group of attention heads may keep any
        number of them.
    skip: groups left whole, by name (``python -m pfray.inspect`` lists them).
    min_keep: least share of its units that a group keeps, rounded up to an allowed count. PocketFlow derives it from
        the target (``lbound``, the lower end of the agent's actions: 1.5 log10(1 + cp_preserve_ratio), which is 0.26
        for half of the MACs), AMC uses 0.2 (He et al. 2018, ``lbound``). 0: as few as ``round_to`` allows.
    group_size, group_epochs: group fine-tuning (Wu et al. 2018, section 3.1.1): the plan is reached by pruning
        ``group_size`` groups at a time, with ``group_epochs`` epochs of training after each. 0 prunes all at once.
    """

    round_to: Annotated[int, Field(ge=1)] = 8
    skip: tuple[str, ...] = ()
    min_keep: Annotated[float, Field(ge=0, lt=1)] = 0.0
    group_size: Annotated[int, Field(ge=0)] = 0
    group_epochs: Annotated[int, Field(ge=1)] = 1


def graph_of(model: nn.Module, task: Task) -> ChannelGraph:
    """The model's channel graph for the task's inputs. Its proof takes seconds and is cached by model object until the
    model is pruned."""
    return once_for_structure(_graphs, model, example_input(task), channel_graph)


def keep_graph(model: nn.Module, task: Task, graph: ChannelGraph) -> None:
    """Let ``graph_of`` return ``graph``, known otherwise, until the model is pruned."""
    once_for_structure(_graphs, model, example_input(task), lambda *_: graph)


def searched_groups(graph: ChannelGraph, settings: ChannelSettings) -> list[ChannelGroup]:
    """Groups that have a knob. Raises UnsupportedModel for an unknown name in ``skip``, and if none is left."""
    names = without_skipped((group.name for group in graph.groups), settings.skip, "channel group")
    chosen = [group for group in graph.groups if group.name in names]
    if not chosen:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in list(graph.skipped.items())[:3])
        raise UnsupportedModel(
            f"the model has no channels that can be removed ({reasons or 'every group is in learner.skip'}). "
            "Remedy: python -m pfray.inspect lists all reasons; or another learner, such as weight_sparse"
        )
    return chosen


def channel_space(graph: ChannelGraph, settings: ChannelSettings) -> CompressionSpace:
    """A knob, the keep ratio, for every group. Costs: exact ``macs`` and ``params``, and ``size_bytes`` in float32.

    Raises ConfigError if ``min_keep`` or ``round_to`` leaves every group whole.
    """
    groups = [
        group
        for group in searched_groups(graph, settings)
        if len(allowed_counts(group, settings.round_to, settings.min_keep)) > 1
    ]
    if not groups:
        name, other = ("min_keep", "round_to") if settings.min_keep else ("round_to", "min_keep")
        raise ConfigError(
            f"learner.{name}: {getattr(settings, name):g} leaves every channel group whole. Remedy: a smaller one, or "
            f"a smaller learner.{other}"
        )
    knobs = []
    for group in groups:
        counts = allowed_counts(group, settings.round_to, settings.min_keep)
        knobs.append(
            Knob(
                group.name,
                compressed=counts[0] / group.units,
                full=1.0,
                choices=tuple(count / group.units for count in counts),
                facts={"params": group.params, "macs": group.macs, "units": group.units},
                kind="keep_ratio",
            )
        )
    rows = np.array([index for index, group in enumerate(graph.groups) if group in groups])
    return CompressionSpace(
        tuple(knobs), partial(_costs, graph=graph, rows=rows), weights_left=partial(_weights, graph=graph, rows=rows)
    )


def allowed_counts(group: ChannelGroup, round_to: int, min_keep: float = 0.0) -> list[int]:
    """Allowed counts of kept units, rising: at least the share ``min_keep``, and always all units."""
    channels = group.cuts[0].index.shape[1]  # of one unit, in the layer that makes them
    step = max(1, round_to // channels) if group.noun == "channels" else 1
    while step > 1 and group.units < CHOICES * step:
        step //= 2
    least = min_keep * group.units - 1e-9  # 0.7 of 10 is 7, however float rounds
    return [count for count in (*range(step, group.units, step), group.units) if count >= least]


def kept_counts(graph: ChannelGraph, plan: Plan) -> dict[str, int]:
    """Number of units that each group of the plan keeps; groups that an earlier learner has taken out are left out."""
    units = {group.name: group.units for group in graph.groups}
    return {name: max(1, round(ratio * units[name])) for name, ratio in plan.items() if name in units}


def group_plans(plan: Plan, group_size: int) -> list[Plan]:
    """Plans of group fine-tuning before the whole plan: the first k of the pruned groups, then the first 2 k, ..."""
    pruned = [name for name, ratio in plan.items() if ratio < 1]
    ends = range(group_size, len(pruned), group_size) if group_size else ()
    return [{n: r if n in pruned[:end] else 1.0 for n, r in plan.items()} for end in ends]


def groups_left(model: nn.Module, counts: Mapping[str, int], task: Task) -> dict[ChannelGroup, int]:
    """Units to keep by group, for a model that an earlier stage may have pruned already. counts: by the group's name.

    A group pruned to one unit by an earlier stage is no group any more.
    """
    return {group: counts[group.name] for group in graph_of(model, task).groups if group.name in counts}


def with_counts(model: nn.Module, counts: Mapping[str, int], task: Task) -> nn.Module:
    """A copy of the model in which each group keeps so many units, whichever those are."""
    pruned = copy.deepcopy(model)
    prune(pruned, graph_of(model, task), {name: range(count) for name, count in counts.items()})
    return pruned


def error_curves(
    graph: ChannelGraph, settings: ChannelSettings, error: Callable[[ChannelGroup, int], float]
) -> dict[str, np.ndarray]:
    """A learner's ``error_curves``, ``(POINTS,)`` each. error(group, count): of keeping ``count`` units."""
    curves = {}
    for group in searched_groups(graph, settings):
        counts = np.array(allowed_counts(group, settings.round_to, settings.min_keep))
        errors = np.array([error(group, int(count)) for count in counts])
        wanted = np.linspace(counts[0], counts[-1], POINTS)
        curves[group.name] = errors[np.abs(wanted[:, None] - counts).argmin(1)]
    return curves


def _costs(values: np.ndarray, graph: ChannelGraph, rows: np.ndarray) -> dict[str, float]:
    costs = graph.costs(_kept(values, graph, rows))
    return {**costs, "size_bytes": stored_bytes(costs["params"])}


def _weights(values: np.ndarray, graph: ChannelGraph, rows: np.ndarray) -> dict[str, float]:
    return graph.weights(_kept(values, graph, rows))


def _kept(values: np.ndarray, graph: ChannelGraph, rows: np.ndarray) -> np.ndarray:
    kept = graph.units.copy()
    kept[rows] = np.rint(values * kept[rows])
    return kept
