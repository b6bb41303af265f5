"""Entries taken out of layers, or their weights set to 0, with torch-pruning's functions for each kind of layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch_pruning.ops import OPTYPE, module2type
from torch_pruning.pruner.function import PrunerBox

from pfray.errors import UnsupportedModel
from pfray.pruning.channels.dependency import Cut, Side
from pfray.pruning.channels.inside import Inside


@dataclass(frozen=True, eq=False)
class Removal:
    """The sorted ``positions`` that one side of one layer loses; ``size``, ``kind`` and ``inside`` as in the cut."""

    layer: str
    side: Side
    positions: np.ndarray
    size: int
    kind: str
    inside: Inside | None = None


def entries(layer: nn.Module, side: Side) -> int:
    """Number of channels or features of a layer's side."""
    pruner = PrunerBox[module2type(layer)]
    return pruner.get_out_channels(layer) if side == "out" else pruner.get_in_channels(layer)


def remove_entries(model: nn.Module, removals: Sequence[Removal]) -> None:
    """Take the entries out of the layers, in place, with torch-pruning's function for each kind of layer.

    ``requires_grad`` is kept. Raises UnsupportedModel for a layer that does not have the expected size.
    """
    for removal in removals:
        layer, inside = model.get_submodule(removal.layer), removal.inside
        size = inside.entries(layer, removal.size) if inside else entries(layer, removal.side)
        if size != removal.size:
            raise UnsupportedModel(
                f"layer {removal.layer} has {size} {removal.side}put channels, and the channel graph was made for "
                f"{removal.size}. Remedy: prune a copy of the model it was made for, or make a new graph"
            )
    for removal in removals:
        layer = model.get_submodule(removal.layer)
        if removal.inside:
            removal.inside.shrink(layer, removal.positions, removal.size)
            continue
        pruner = PrunerBox[OPTYPE[removal.kind]]
        trained = {name: parameter.requires_grad for name, parameter in layer.named_parameters(recurse=False)}
        cut = pruner.prune_out_channels if removal.side == "out" else pruner.prune_in_channels
        cut(layer, removal.positions.tolist())
        for name, parameter in layer.named_parameters(recurse=False):
            parameter.requires_grad_(trained[name])


def mask(model: nn.Module, removals: Sequence[Removal]) -> None:
    """Set every weight that reads an entry to be removed to 0.0, in place; nothing is taken out."""
    for removal in removals:
        if removal.side == "in":
            layer = model.get_submodule(removal.layer)
            weight = layer.get_parameter("weight").detach().clone()
            # A transposed convolution has the inputs on axis 0; a grouped one has the inputs of one group.
            axis = 0 if getattr(layer, "transposed", False) else 1
            weight.index_fill_(axis, torch.from_numpy(removal.positions[removal.positions < weight.shape[axis]]), 0.0)
            layer.weight = nn.Parameter(weight, layer.get_parameter("weight").requires_grad)


def removals_of(parts: Iterable[tuple[tuple[Cut, ...], np.ndarray]]) -> list[Removal]:
    """The removals if the given units of each group go; one for each side, with positions in the whole layer."""
    gone: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    cuts: dict[tuple[str, str], Cut] = {}
    for group, units in parts:
        for cut in group if len(units) else ():
            cuts[cut.layer, cut.side] = cut
            gone[cut.layer, cut.side].append(cut.index[units].ravel())
    return [
        Removal(cut.layer, cut.side, np.unique(np.concatenate(gone[key])), cut.size, cut.kind, cut.inside)
        for key, cut in cuts.items()
    ]
