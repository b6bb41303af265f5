"""Layers and blocks that a network can do without: the costs without them, and their removal. ``find.py`` finds them.

A layer (convolution or linear, with the batch norm and activation behind it) can go if its input can be passed to the
layers behind it: these are dense, so that their weights can be made for other channels, and the layer either keeps the
size of the feature map or its stride can be moved to them. A block can go if it has a shortcut and keeps the shape of
its input. Everything else stays: the first and the last layer, poolings, down-sampling blocks.

Notation: L layers in execution order; layer l gives n_l channels and reads the layer p_l (its source) through nothing
but batch norm, activation, pooling and flattening, m_l entries for each of the source's channels. Its width is
w_l = m_l n_p if its source p stays, and m_l w_p if p is out. It has a_l w_l + b_l weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx, nn

# Numbers of the kinds in the layers' descriptions.
KINDS = {"conv": 0, "depthwise": 1, "linear": 2, "block": 3}


@dataclass(frozen=True)
class Layer:
    """source: the index p_l; None if it reads something else. readers: indices of the layers whose source it is.

    per_entry: (macs, params) for each entry that it reads, ``(2,)``. own: (macs, params) that do not depend on the
    entries. entries: m_l, or w_l without a source. behind: modules between it and its readers that go with it. path:
    nodes there that stay. removable: True if it has a knob. mover: factor by which its readers' stride grows.
    """

    name: str
    kind: str
    channels: int
    source: int | None
    readers: tuple[int, ...]
    entries: int
    per_entry: np.ndarray
    own: np.ndarray
    behind: tuple[str, ...]
    path: tuple[fx.Node, ...]
    removable: bool
    mover: int


@dataclass(frozen=True)
class Block:
    """members: indices of the layers inside."""

    name: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class LayerGraph:
    """Layers and removable blocks of one model. constant: (macs, params) of all but the layers.

    kept: the reason, by name, why each layer without a knob stays.
    """

    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    constant: np.ndarray
    kept: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the removable blocks and layers in execution order, a block before the layers inside."""
        first = {block.name: (block.members[0], 0) for block in self.blocks}
        inner = {layer.name: (i, 1) for i, layer in enumerate(self.layers) if layer.removable}
        return sorted({**first, **inner}, key=lambda name: {**first, **inner}[name])

    def out(self, gone: Collection[str]) -> set[int]:
        """Indices of the layers that are out without the named layers and blocks."""
        inside = {i for block in self.blocks if block.name in gone for i in block.members}
        return inside | {i for i, layer in enumerate(self.layers) if layer.removable and layer.name in gone}

    def widths(self, out: Collection[int]) -> list[int]:
        """w_l of every layer. out: indices of the layers that are out."""
        widths: list[int] = []
        for layer in self.layers:
            source = layer.source
            reads = 1 if source is None else widths[source] if source in out else self.layers[source].channels
            widths.append(layer.entries * reads)
        return widths

    def costs(self, gone: Collection[str]) -> dict[str, float]:
        """Exact ``macs`` of one input and ``params`` without the named layers and blocks."""
        out = self.out(gone)
        total = self.constant.copy()
        for index, (layer, width) in enumerate(zip(self.layers, self.widths(out), strict=True)):
            if index not in out:
                total += layer.per_entry * width + layer.own
        return {"macs": float(np.rint(total[0])), "params": float(np.rint(total[1]))}

    def weights(self, gone: Collection[str]) -> dict[str, float]:
        """Number of weights in every dense layer without the named layers and blocks; 0 for layers that are out."""
        out = self.out(gone)
        left = {}
        for index, (layer, width) in enumerate(zip(self.layers, self.widths(out), strict=True)):
            if index in out or layer.per_entry.any():
                left[layer.name] = 0.0 if index in out else float(np.rint(layer.per_entry[1] * width))
        return left


def remove_layers(model: nn.Module, found: LayerGraph, gone: Collection[str]) -> None:
    """Take the named layers and blocks out of ``model``, in place.

    Layers whose input changes get weights of 0 in the new shape; the others keep their weights.
    """
    out = found.out(gone)
    widths, whole = found.widths(out), found.widths(())
    for block in found.blocks:
        within = any(block.name.startswith(f"{other}.") for other in gone)
        if block.name in gone and not within:
            vacate(model, block.name)
    inside = {i for block in found.blocks if block.name in gone for i in block.members}
    for index, layer in enumerate(found.layers):
        if index in inside:
            continue
        if index in out:
            for name in (layer.name, *layer.behind):
                vacate(model, name)
            continue
        module: Any = model.get_submodule(layer.name)
        for source in behind_which(found, index, out):
            if isinstance(module, nn.Conv2d):
                module.stride = tuple(s * found.layers[source].mover for s in module.stride)
        if widths[index] != whole[index]:
            shape = (len(module.weight), widths[index], *module.weight.shape[2:])
            trained = module.weight.requires_grad
            module.weight = nn.Parameter(module.weight.new_zeros(shape), requires_grad=trained)
            setattr(module, "in_features" if isinstance(module, nn.Linear) else "in_channels", widths[index])
    # Tensors that one module read may now be read by two, and must not be overwritten.
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False


def behind_which(found: LayerGraph, index: int, out: Collection[int]) -> Iterator[int]:
    """Indices of the layers that are out between a layer and its new source, the nearest first."""
    source = found.layers[index].source
    while source is not None and source in out:
        yield source
        source = found.layers[source].source


def vacate(model: nn.Module, name: str) -> None:
    """Replace a module by ``nn.Identity``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
