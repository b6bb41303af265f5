"""Layer removal: removes whole layers and blocks (Pahwa et al. 2019, "Data-driven compression"; Ashok et al. 2018,
"N2N").

The student starts from the teacher's weights. A removed residual block leaves its shortcut. A removed layer is replaced
by its best linear approximation, multiplied into the weights of the layers that read it
(``pfray/pruning/layers/linear_maps.py``): no layer remains in its place, and the number of input channels of its
readers is adapted.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field
from torch import nn

from learners import filter_ranked
from pfray.errors import ConfigError, UnsupportedModel
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

# Layers of an error e that change the predictions together as much as a lost block of the error e: without a share e of
# its stream, ResNet-56 loses what 1 - (1 - e)^4 of one layer's outputs would cost it (docs/results.md).
LAYERS_OF_A_BLOCK = 4

# Key of a plan: a keep ratio of the filters other than the settings'.
FILTERS = "filters"


@dataclass(frozen=True)
class Settings:
    """images: training inputs for fitting the maps and ranking the filters. skip: layers and blocks to keep, by name.

    filters: second stage: the keep ratio of the filters of every layer, pruned by a Taylor ranking (``filter_ranked``)
        after the chosen plan's model was trained for ``filter_epochs``. 1 omits the stage. It comes on top of the
        target. round_to: filter counts are multiples of this, as for the channel learners.
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
    rounding_setting = "round_to"
    has_error_curves = True

    def space(self) -> CompressionSpace:
        """One knob, 0 to remove and 1 to keep, per removable layer and block.

        Costs: ``params``, ``macs``, and ``size_bytes`` of the parameters as float32. Raises UnsupportedModel if there
        is no such layer, or for an unknown name in ``skip``.
        """
        found = removable_of(self.model, self.task)
        chosen = without_skipped(found.names, self.settings.skip, "removable layer or block")
        if not chosen:
            reasons = "; ".join(f"{layer}: {reason}" for layer, reason in list(found.kept.items())[:3])
            raise UnsupportedModel(
                f"{type(self.model).__name__} has no layer that can be removed "
                f"({reasons or 'all are in learner.skip'}). Remedy: another learner, such as channel_pruned"
            )
        facts = layer_features(self.model, found, chosen)
        knobs = tuple(Knob(n, 0.0, 1.0, choices=(0.0, 1.0), facts=facts[n], kind="layer") for n in chosen)
        costs = _Costs(found, tuple(chosen))
        return CompressionSpace(knobs, costs, weights_left=costs.weights)

    def removable(self) -> LayerGraph:
        if self.settings.filters < 1:
            raise ConfigError(
                f"learner.layer_removal.filters: {self.settings.filters:g} is not allowed before another learner of "
                "channels, which decides over the filters. Allowed: 1. Remedy: leave filters out"
            )
        return removable_of(self.model, self.task)

    @cached_property
    def maps(self) -> Maps:
        """Best linear approximation of each removable layer."""
        return fit_maps(self.model, removable_of(self.model, self.task), self.task, self.settings.images)

    def error_curves(self) -> dict[str, np.ndarray]:
        """Error without each knob's layer or block, and 0 with it.

        For a layer the share of the output variance that its map does not explain. For a block 1 - (1 - e)^4, where e
        is the share that it adds: all later blocks read what a lost one added.
        """
        powers = dict.fromkeys((block.name for block in self.maps.found.blocks), LAYERS_OF_A_BLOCK)
        errors = {name: 1 - (1 - self.maps.errors[name]) ** powers.get(name, 1) for name in self.space().names}
        return {name: np.array([error, 0.0]) for name, error in errors.items()}

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        return Compressed(take_out(self.model, self.maps, removed_names(plan)))

    def finish(self, plan: Plan, start: nn.Module | None = None) -> Compressed:
        """The student, with fewer filters in the second stage. start: the trained student of the first stage."""
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
        """``removed``: names of the removed layers and blocks. ``filters``: keep ratio of all remaining filters."""
        return {"removed": removed_names(plan), "filters": plan.get(FILTERS, self.settings.filters)}

    def rebuild(self, structure: dict[str, Any]) -> nn.Module:
        model = copy.deepcopy(self.model)
        remove_layers(model, removable_of(self.model, self.task), structure["removed"])
        if structure["filters"] < 1:
            model = keep_ratios.with_counts(model, filter_counts(model, self.task, self.settings), self.task)
        return model

    def stages(self, plan: Plan) -> list[Stage]:
        """If filters are pruned, the student is first trained with all of them."""
        if self.settings.filters == 1:
            return []
        return [Stage({**plan, FILTERS: 1.0}, self.settings.filter_epochs)]


_removable_cache: WeakKeyDictionary[nn.Module, tuple[Any, LayerGraph]] = WeakKeyDictionary()


def removable_of(model: nn.Module, task: Task) -> LayerGraph:
    """``layer_graph`` on the task's inputs, cached per model object until its structure changes."""
    return once_for_structure(_removable_cache, model, example_input(task), layer_graph)


def removed_names(plan: Plan) -> list[str]:
    """Names of the layers and blocks that a plan removes."""
    return [name for name, value in plan.items() if value < 0.5 and name != FILTERS]


def filter_counts(model: nn.Module, task: Task, settings: Settings) -> dict[str, int]:
    """Number of filters that each channel group keeps in the second stage."""
    counts = {}
    for group in keep_ratios.graph_of(model, task).groups:
        allowed = keep_ratios.allowed_counts(group, settings.round_to)
        counts[group.name] = min(allowed, key=lambda count: abs(count - settings.filters * allowed[-1]))
    return counts


class _Costs:
    """``costs_of`` of the space, cached by the names of the removed layers."""

    def __init__(self, found: LayerGraph, names: tuple[str, ...]) -> None:
        self.found, self.names = found, names
        self._of = lru_cache(maxsize=100_000)(lambda removed: found.costs(removed))

    def __call__(self, values: np.ndarray) -> dict[str, float]:
        costs = self._of(self._removed(values))
        return {"params": costs["params"], "macs": costs["macs"], "size_bytes": stored_bytes(costs["params"])}

    def weights(self, values: np.ndarray) -> dict[str, float]:
        """``weights_left`` of the space."""
        return self.found.weights(self._removed(values))

    def _removed(self, values: np.ndarray) -> tuple[str, ...]:
        return tuple(name for name, value in zip(self.names, values, strict=True) if value < 0.5)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Costs, (self.found, self.names)


def layer_features(model: nn.Module, found: LayerGraph, names: list[str]) -> dict[str, dict[str, float]]:
    """(t, k, s, p, n, s_start, s_end) of Pahwa et al. 2019 for every knob, and the params and MACs that it removes.

    t: ``graph.KINDS``. k, s, p, n: kernel, stride, padding, outputs, for a block of its first layer. s_start, s_end:
    first and last layer, counted from 1, of the shortcut around it; 0 without. block: position, counted from 1, of the
    knob that removes the block around it; 0 without.
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
