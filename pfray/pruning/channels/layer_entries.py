"""Entries taken out of layers and parameters, or made without effect, layer by layer.

Most layers are cut with torch-pruning's functions for each kind.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_pruning.ops import OPTYPE, module2type
from torch_pruning.pruner.function import PrunerBox

from pfray.errors import UnsupportedModel
from pfray.nn.parts import take_channels
from pfray.pruning.channels.dependency import Cut
from pfray.pruning.channels.inside import Inside
from pfray.pruning.channels.moves import Side
from pfray.pruning.channels.numbers import holds, with_size

# Kinds of norms whose mean and variance go over several channels.
ACROSS = ("LN", "GN")
# Kinds of cuts that are no layers, but attributes of one: parameters, numbers, and splits and shuffles of channels.
ATTRIBUTES = ("PARAMETER", "NUMBER", "PARTS")


@dataclass(frozen=True, eq=False)
class Removal:
    """The sorted ``positions`` that one side of one layer loses; the rest as in the cut."""

    layer: str
    side: Side
    positions: np.ndarray
    size: int
    kind: str
    axis: int = 0
    inside: Inside | None = None

    @property
    def kept(self) -> Tensor:
        """The positions that stay."""
        return torch.from_numpy(np.setdiff1d(np.arange(self.size), self.positions))


def owner_of(model: nn.Module, cut: Cut | Removal) -> nn.Module:
    """The layer that is cut; the module that a parameter, number, split or shuffle belongs to."""
    return model.get_submodule(cut.layer.rpartition(".")[0] if cut.kind in ATTRIBUTES else cut.layer)


def entries(layer: nn.Module, side: Side) -> int:
    """Number of channels or features of a layer's side."""
    pruner = PrunerBox[module2type(layer)]
    return pruner.get_out_channels(layer) if side == "out" else pruner.get_in_channels(layer)


def remove_entries(model: nn.Module, removals: Sequence[Removal]) -> None:
    """Take the entries out of the layers, in place; ``requires_grad`` is kept.

    Raises UnsupportedModel for a layer that does not have the expected size.
    """
    for removal in removals:
        size = _size(owner_of(model, removal), removal)
        if size != removal.size:
            raise UnsupportedModel(
                f"layer {removal.layer} has {size} {removal.side}put channels, and the channel graph was made for "
                f"{removal.size}. Remedy: prune a copy of the model it was made for, or make a new graph"
            )
    for removal in removals:
        _cut(owner_of(model, removal), removal)


def _size(layer: Any, removal: Removal) -> Any:
    name = removal.layer.rpartition(".")[2]
    if removal.inside:
        return removal.inside.entries(layer, removal.size)
    if removal.kind == "PARAMETER":
        return layer.get_parameter(name).shape[removal.axis]
    if removal.kind == "NUMBER":
        value = getattr(layer, name)
        return removal.size if holds(value, removal.size) else value
    if removal.kind == "PARTS":  # of any number of channels, until it has lost some
        return getattr(getattr(layer, name, None), "channels", None) or removal.size
    return entries(layer, removal.side)


def _cut(layer: Any, removal: Removal) -> None:
    if removal.inside:
        removal.inside.shrink(layer, removal.positions, removal.size)
        return
    name = removal.layer.rpartition(".")[2]
    if removal.kind == "PARAMETER":
        _keep(layer, name, removal)
        return
    if removal.kind == "NUMBER":
        setattr(layer, name, with_size(getattr(layer, name), removal.size, len(removal.kept)))
        return
    if removal.kind == "PARTS":
        take_channels(layer, name, removal.size, removal.positions)
        return
    if removal.kind == "LN":
        for own in ("weight", "bias"):
            _keep(layer, own, removal)
        layer.normalized_shape = (len(removal.kept),)
        return
    pruner = PrunerBox[OPTYPE[removal.kind]]
    trained = {name: parameter.requires_grad for name, parameter in layer.named_parameters(recurse=False)}
    cut = pruner.prune_out_channels if removal.side == "out" else pruner.prune_in_channels
    cut(layer, removal.positions.tolist())
    for name, parameter in layer.named_parameters(recurse=False):
        parameter.requires_grad_(trained[name])


def _keep(owner: nn.Module, name: str, removal: Removal) -> None:
    """Leave only the kept entries of a parameter, if it is there."""
    whole = owner._parameters.get(name)
    if whole is not None:
        left = whole.detach().index_select(removal.axis, removal.kept.to(whole.device))
        owner.register_parameter(name, nn.Parameter(left, whole.requires_grad))


def mask(model: nn.Module, removals: Sequence[Removal]) -> None:
    """Make the entries to be removed without effect, in place; nothing is taken out.

    Every weight that reads one is 0, and norms across channels leave it out of their mean and variance.
    """
    for removal in removals:
        if removal.inside:
            removal.inside.mask(model.get_submodule(removal.layer), removal.positions, removal.size)
        elif removal.side == "in":
            layer = model.get_submodule(removal.layer)
            weight = layer.get_parameter("weight").detach().clone()
            # A transposed convolution has the inputs on axis 0; a grouped one has the inputs of one group.
            axis = 0 if getattr(layer, "transposed", False) else 1
            weight.index_fill_(axis, torch.from_numpy(removal.positions[removal.positions < weight.shape[axis]]), 0.0)
            layer.weight = nn.Parameter(weight, layer.get_parameter("weight").requires_grad)
        elif removal.kind in ACROSS:
            _normalize_kept(model.get_submodule(removal.layer), removal)


def _normalize_kept(layer: nn.Module, removal: Removal) -> None:
    """Let a norm work on the kept channels alone, and give 0 for the others."""
    part = copy.deepcopy(layer)
    _cut(part, removal)
    # Subclasses of LayerNorm may have the channels on axis 1; along the wrong axis the smaller norm fails.
    own = type(layer).forward
    axes = (1,) if removal.kind == "GN" else (-1,) if own is nn.LayerNorm.forward else (-1, 1)

    def forward(x: Tensor) -> Tensor:
        for axis in axes:
            if x.shape[axis] == removal.size:
                try:
                    made = part(x.index_select(axis, removal.kept))
                except RuntimeError:
                    continue
                return torch.zeros_like(x).index_copy(axis, removal.kept, made)
        raise ValueError(f"no axis of {tuple(x.shape)} holds {removal.size} channels")

    layer.forward = forward


def removals_of(parts: Iterable[tuple[tuple[Cut, ...], np.ndarray]]) -> list[Removal]:
    """The removals if the given units of each group go; one for each side, with positions in the whole layer."""
    gone: dict[tuple[str, str, str], list[np.ndarray]] = defaultdict(list)
    cuts: dict[tuple[str, str, str], Cut] = {}
    for group, units in parts:
        for cut in group if len(units) else ():
            key = cut.layer, cut.side, cut.kind
            cuts[key] = cut
            gone[key].append(cut.index[units].ravel())
    return [
        Removal(cut.layer, cut.side, np.unique(np.concatenate(gone[key])), cut.size, cut.kind, cut.axis, cut.inside)
        for key, cut in cuts.items()
    ]
