"""Whole layers and blocks taken out (Pahwa et al. 2019, "Data-driven compression"; Ashok et al. 2018, "N2N").

The student starts from the teacher's weights. A residual block that goes leaves its shortcut. A layer that goes is
replaced by the linear map that comes nearest to it, multiplied into the weights of the layers that read it
(``pfray/pruning/layers/linear_maps.py``): nothing is left of it, and they have as many input channels as then reach
them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from learners import filter_ranked
from pfray.errors import UnsupportedModel
from pfray.learner.base import Algorithm, Compressed, Stage
from pfray.measure.cost import stored_bytes
from pfray.nn.layers import without_skipped
from pfray.nn.structure_cache import once_for_structure
from pfray.pruning.channels import keep_ratios
from pfray.pruning.channels.importance import Ranking, keep_highest
from pfray.pruning.layers.find import layer_graph
from pfray.pruning.layers.graph import KINDS, LayerGraph, remove_layers
from pfray.pruning.layers.linear_maps import Maps, fit_maps, take_out
from pfray.space import CompressionSpace, Knob, Plan
from pfray.task import Task, example_input
from pfray.training.batch_norm import reestimate_batch_norm

# In a plan: the keep ratio of the filters where it is not the settings'.
FILTERS = "filters"


@dataclass(frozen=True)
class Settings:
    """images: training inputs that the maps are fitted on, and filters are ranked on. skip: layers and blocks that
    stay, by name.

    filters: the second stage: the share of the filters of every layer that is kept, the chosen plan's model having been
        trained for ``filter_epochs``; which ones, a Taylor ranking says (``filter_ranked``). 1 leaves it out. It
        comes on top of the target. round_to: filter counts are multiples of this, as for the channel learners.
    """

    images: Annotated[int, Field(ge=1)] = 500
    skip: tuple[str, ...] = ()
    filters: Annotated[float, Field(gt=0, le=1)] = 1.0
    filter_epochs: Annotated[int, Field(ge=1)] = 5
    round_to: Annotated[int, Field(ge=1)] = 8


class LayerRemoval(Algorithm):
    settings: Settings
    settings_type = Settings
    permanent = True
    has_finish = True
    has_error_curves = True

    def space(self) -> CompressionSpace:
        """One knob, 0 to remove and 1 to keep, for every layer and block that can go; costs ``params``, ``macs``, and
        ``size_bytes``, the first's as float32.

        Raises UnsupportedModel where there is none, and for an unknown name in ``skip``.
        """
        found = removable_of(self.model, self.task)
        chosen = without_skipped(found.names, self.settings.skip, "removable layer or block")
        if not chosen:
            reasons = "; ".join(f"{layer}: {reason}" for layer, reason in list(found.kept.items())[:3])
            raise UnsupportedModel(
                f"{type(self.model).__name__} has no layer that can be removed "
                f"({reasons or 'all are in learner.skip'}). Remedy: another learner, such as channel_pruned"
            )
        facts = descriptions(self.model, found, chosen, example_input(self.task))
        knobs = tuple(Knob(n, 0.0, 1.0, choices=(0.0, 1.0), facts=facts[n], kind="layer") for n in chosen)
        costs = _Costs(found, tuple(chosen))
        return CompressionSpace(knobs, costs, weights_left=costs.weights)

    @cached_property
    def maps(self) -> Maps:
        """The linear map nearest to each layer."""
        return fit_maps(self.model, removable_of(self.model, self.task), self.task, self.settings.images)

    def error_curves(self) -> dict[str, np.ndarray]:
        """What a layer's map leaves unexplained, and what a block adds, both as a share of the variance behind it."""
        return {name: np.array([self.maps.errors[name], 0.0]) for name in self.space().names}

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        return Compressed(take_out(self.model, self.maps, removed(plan)))

    def finish(self, plan: Plan, start: nn.Module | None = None) -> Compressed:
        """The student; or, where it has been trained already, the student with fewer filters."""
        structure = self.structure(plan)
        student = take_out(self.model, self.maps, structure["removed"]) if start is None else copy.deepcopy(start)
        if structure["filters"] < 1:
            student = self._without_filters(student)
        reestimate_batch_norm(student, self.task, self.settings.images, "float32")
        return Compressed(student, structure=structure)

    def _without_filters(self, student: nn.Module) -> nn.Module:
        settings, task = self.settings, self.task
        ranked = filter_ranked.Settings(round_to=settings.round_to, criterion="taylor", images=settings.images)
        graph, counts = keep_ratios.graph_of(student, task), filter_counts(student, task, settings)
        groups = [group for group in graph.groups if group.name in counts]
        return keep_highest(student, Ranking(graph, filter_ranked.rank(student, groups, task, ranked)), counts)

    def structure(self, plan: Plan) -> dict[str, Any]:
        """removed: the layers and blocks that are taken out. filters: the keep ratio of all filters after that."""
        return {"removed": removed(plan), "filters": plan.get(FILTERS, self.settings.filters)}

    def rebuild(self, structure: dict[str, Any]) -> nn.Module:
        model = copy.deepcopy(self.model)
        remove_layers(model, removable_of(self.model, self.task), structure["removed"])
        if structure["filters"] < 1:
            model = keep_ratios.with_counts(model, filter_counts(model, self.task, self.settings), self.task)
        return model

    def stages(self, plan: Plan) -> list[Stage]:
        """Where filters are to go, the student is trained with all of them first."""
        if self.settings.filters == 1:
            return []
        return [Stage({**plan, FILTERS: 1.0}, self.settings.filter_epochs)]


_found: WeakKeyDictionary[nn.Module, tuple[Any, LayerGraph]] = WeakKeyDictionary()


def removable_of(model: nn.Module, task: Task) -> LayerGraph:
    """``layer_graph`` on the task's inputs, once for a model object, and again where its structure has changed."""
    return once_for_structure(_found, model, example_input(task), layer_graph)


def removed(plan: Plan) -> list[str]:
    """The layers and blocks that a plan takes out."""
    return [name for name, value in plan.items() if value < 0.5 and name != FILTERS]


def filter_counts(model: nn.Module, task: Task, settings: Settings) -> dict[str, int]:
    """The filters that each group of channels keeps in the second stage."""
    counts = {}
    for group in keep_ratios.graph_of(model, task).groups:
        allowed = keep_ratios.allowed_counts(group, settings.round_to)
        counts[group.name] = min(allowed, key=lambda count: abs(count - settings.filters * allowed[-1]))
    return counts


class _Costs:
    """``costs_of`` of the space: the costs of a plan's values, remembered by what they take out."""

    def __init__(self, found: LayerGraph, names: tuple[str, ...]) -> None:
        self.found, self.names = found, names
        self._of = lru_cache(maxsize=100_000)(lambda gone: found.costs(gone))

    def __call__(self, values: np.ndarray) -> dict[str, float]:
        costs = self._of(self._gone(values))
        return {"params": costs["params"], "macs": costs["macs"], "size_bytes": stored_bytes(costs["params"])}

    def weights(self, values: np.ndarray) -> dict[str, float]:
        """``weights_left`` of the space."""
        return self.found.weights(self._gone(values))

    def _gone(self, values: np.ndarray) -> tuple[str, ...]:
        return tuple(name for name, value in zip(self.names, values, strict=True) if value < 0.5)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Costs, (self.found, self.names)


def descriptions(model: nn.Module, found: LayerGraph, names: list[str], example: Tensor) -> dict[str, dict[str, float]]:
    """(t, k, s, p, n, s_start, s_end) of Pahwa et al. 2019 of every knob, and what goes with it.

    t: ``graph.KINDS``. k, s, p, n: kernel, stride, padding, outputs; of a block those of its first layer and the
    stride of all. s_start, s_end: the first and the last layer, counted from 1, of the shortcut around it; 0 without.
    block: the place, counted from 1, of the knob that takes out the block around it; 0 without.
    """
    whole = found.costs(())
    places = {name: place for place, name in enumerate(names, start=1)}
    numbers = {layer.name: number for number, layer in enumerate(found.layers)}
    facts = {}
    for name in names:
        block = next((b for b in found.blocks if b.name == name), None)
        around = block or next((b for b in found.blocks if name.startswith(f"{b.name}.")), None)
        layer = found.layers[block.members[0] if block else numbers[name]]
        module: Any = model.get_submodule(layer.name)
        conv = isinstance(module, nn.Conv2d)
        without = found.costs([name])
        facts[name] = {
            "type": float(KINDS["block" if block else layer.kind]),
            "kernel": float(module.kernel_size[0]) if conv else 1.0,
            "stride": float(module.stride[0]) if conv else 1.0,
            "padding": float(module.padding[0]) if conv and not isinstance(module.padding, str) else 0.0,
            "outputs": float(layer.channels),
            "skip_start": around.members[0] + 1.0 if around else 0.0,
            "skip_end": around.members[-1] + 1.0 if around else 0.0,
            "block": float(places.get(around.name, 0)) if around and around is not block else 0.0,
            "params": whole["params"] - without["params"],
            "macs": whole["macs"] - without["macs"],
        }
    return facts
