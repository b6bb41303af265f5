"""The channel groups of a network without some of its layers and blocks, and their costs, without tracing it again.

A group loses the layers that are out. A group of which no layer is left is out too, such as that of a block's inner
channels. A layer behind a removed one reads its source's channels instead, so it joins the source's groups. All other
groups keep their names and units; ``predictable`` proves that on copies of the network.

Notation as in ``graph.py`` here and in ``pruning/channels``. A removed layer p is passed over: a layer that read p's
O_p channels then has I = m I_p entries, m for each entry that p read. Counts are linear in the kept units k ``(G,)``
and written as ``(1 + G,)``: the constant, then a coefficient for each group.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from pfray.measure.cost import stored_bytes
from pfray.nn.inputs import Inputs
from pfray.pruning.channels.cost import CostTable
from pfray.pruning.channels.dependency import Cut
from pfray.pruning.channels.graph import ChannelGraph, ChannelGroup, channel_graph, with_savings
from pfray.pruning.channels.layer_entries import ATTRIBUTES
from pfray.pruning.layers.graph import LayerGraph, remove_layers

# Tables that are kept; a search asks for the same removed layers many times in a row.
TABLES = 128


@dataclass(frozen=True, eq=False)
class GroupsOfLayers:
    """The channel graph of a network together with its layer graph."""

    found: LayerGraph
    graph: ChannelGraph

    def modules_out(self, gone: Collection[str]) -> tuple[str, ...]:
        """Names of the removed modules and blocks; what is inside those goes with them."""
        blocks = [block for block in self.found.blocks if block.name in gone]
        inside = {index for block in blocks for index in block.members}
        layers = [self.found.layers[index] for index in sorted(self.found.out(gone) - inside)]
        return (*(b.name for b in blocks), *(name for layer in layers for name in (layer.name, *layer.behind)))

    def without(self, gone: Collection[str]) -> ChannelGraph:
        """The channel graph of the network without the named layers and blocks."""
        out, names = self.found.out(gone), self.modules_out(gone)
        joined = [self._joined(index, out) for index in self._rerouted(out)]
        rerouted = {cut.layer for cut, _ in joined}
        groups, columns = [], []
        for column, group in enumerate(self.graph.groups):
            cuts = [cut for cut in group.cuts if not _within([_module_of(cut)], names)]
            cuts = [cut for cut in cuts if cut.side == "out" or cut.layer not in rerouted]
            cuts += [replace(cut, index=own[column]) for cut, own in joined if column in own]
            if any(cut.side == "in" for cut in cuts):
                groups.append(replace(group, cuts=tuple(cuts)))
                columns.append(column)
        table = _only(self.table_without(gone), columns)
        left = self.graph.skipped.keys() - _within(self.graph.skipped, names)
        skipped = {layer: reason for layer, reason in self.graph.skipped.items() if layer in left}
        return ChannelGraph(with_savings(groups, table), skipped, table)

    def table_without(self, gone: Collection[str]) -> CostTable:
        """Costs without the named layers and blocks, as a function of the kept units of all G groups."""
        out, names, table = self.found.out(gone), self.modules_out(gone), self.graph.table
        each, fixed, pairs = table.each.copy(), table.fixed.copy(), table.pairs.copy()
        linear, constant, single = table.linear.copy(), table.constant.copy(), dict(table.single)
        for name in _within(table.modules, names):
            linear -= table.modules[name][:, 1:]
            constant -= table.modules[name][:, 0]
        for name in _within(self._rows, names):
            pairs[:, self._rows[name]] = 0.0
        for name in _within(single, names):
            single[name] = np.zeros_like(single[name])
        for index in self._rerouted(out):
            layer, reads = self.found.layers[index], self._entries(index, out)
            if (row := self._rows.get(layer.name)) is not None:
                fixed[1, row], each[1, row] = reads[0], reads[1:]
                continue
            # No group cut it, and all its outputs stay.
            change = np.outer(layer.per_entry, reads - self._entries(index, ()))
            constant += change[:, 0]
            linear += change[:, 1:]
            single[layer.name] = layer.per_entry[1] * reads
        return replace(table, each=each, fixed=fixed, pairs=pairs, linear=linear, constant=constant, single=single)

    def idle(self, gone: Collection[str]) -> tuple[set[str], set[str]]:
        """(layers inside removed blocks, groups that are out): nothing depends on those any more."""
        blocks = [block.name for block in self.found.blocks if block.name in gone]
        left = {group.name for group in self.without(gone).groups}
        groups = {group.name for group in self.graph.groups}
        return _within(self.found.names, blocks) - {*blocks}, groups - left

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.graph.table.layers)}

    @cached_property
    def _cuts(self) -> dict[tuple[str, str], dict[int, Cut]]:
        """Cuts of each side of each layer, by column of the group."""
        found: dict[tuple[str, str], dict[int, Cut]] = {}
        for column, group in enumerate(self.graph.groups):
            for cut in group.cuts:
                if cut.kind not in ATTRIBUTES:
                    found.setdefault((cut.layer, cut.side), {})[column] = cut
        return found

    def _rerouted(self, out: Collection[int]) -> list[int]:
        """Indices of the layers that stay and whose source is out."""
        return [i for i, layer in enumerate(self.found.layers) if i not in out and layer.source in out]

    def _joined(self, index: int, out: Collection[int]) -> tuple[Cut, dict[int, np.ndarray]]:
        """A layer's cut behind removed layers, and the positions ``(U, r)`` that it has in it, by column."""
        layer = self.found.layers[index]
        kind = "LINEAR" if layer.kind == "linear" else "CONV"
        whole = Cut(layer.name, "in", np.zeros((0, 0), int), self.found.widths(out)[index], kind)
        return whole, self._positions(index, out)

    def _positions(self, index: int, out: Collection[int]) -> dict[int, np.ndarray]:
        """Positions ``(U, r)`` of each group, by column, in what a layer reads."""
        layer = self.found.layers[index]
        if layer.source is not None and layer.source in out:
            # Flattened feature maps hold all places of one channel side by side.
            places = np.arange(layer.entries)
            before = self._positions(layer.source, out)
            return {c: (own[:, :, None] * layer.entries + places).reshape(len(own), -1) for c, own in before.items()}
        return {column: cut.index for column, cut in self._cuts.get((layer.name, self._side(index)), {}).items()}

    def _entries(self, index: int, out: Collection[int]) -> np.ndarray:
        """Number of entries ``(1 + G,)`` that a layer reads."""
        layer = self.found.layers[index]
        if layer.source is not None and layer.source in out:
            return layer.entries * self._entries(layer.source, out)
        counts = np.zeros(1 + len(self.graph.groups))
        counts[0] = self.found.widths(())[index]
        for column, cut in self._cuts.get((layer.name, self._side(index)), {}).items():
            counts[1 + column] += cut.index.shape[1]
            counts[0] -= cut.index.size
        return counts

    def _side(self, index: int) -> str:
        """The side of a layer whose cuts are of the channels that it reads; a depthwise layer's sides are one."""
        return "out" if self.found.layers[index].kind == "depthwise" else "in"


class JointCosts:
    """``costs_of`` of layers and of groups together. values: of the layers ``names``, 0 or 1, then of ``groups``."""

    def __init__(self, joint: GroupsOfLayers, names: tuple[str, ...], groups: tuple[str, ...]) -> None:
        self.joint, self.names, self.groups = joint, names, groups
        columns = {group.name: column for column, group in enumerate(joint.graph.groups)}
        self.columns = np.array([columns[name] for name in groups], dtype=int)
        self._tables: OrderedDict[tuple[str, ...], CostTable] = OrderedDict()

    def __call__(self, values: np.ndarray) -> dict[str, float]:
        costs = self._table(values).costs(self._kept(values))
        return {**costs, "size_bytes": stored_bytes(costs["params"])}

    def weights(self, values: np.ndarray) -> dict[str, float]:
        """Number of weights left in each layer that may lose some; 0 if it is out."""
        return self._table(values).weights(self._kept(values))

    def idle(self, values: np.ndarray) -> np.ndarray:
        """Mask ``(L,)`` of the knobs that change nothing, because a removed layer or block takes theirs along."""
        layers, groups = self.joint.idle(self._gone(values))
        return np.array([*(n in layers for n in self.names), *(n in groups for n in self.groups)], dtype=bool)

    def _gone(self, values: np.ndarray) -> tuple[str, ...]:
        return tuple(name for name, value in zip(self.names, values, strict=False) if value < 0.5)

    def _table(self, values: np.ndarray) -> CostTable:
        gone = self._gone(values)
        if gone not in self._tables:
            self._tables[gone] = self.joint.table_without(gone)
            while len(self._tables) > TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(gone)
        return self._tables[gone]

    def _kept(self, values: np.ndarray) -> np.ndarray:
        kept = self.joint.graph.units.copy()
        kept[self.columns] = np.rint(values[len(self.names) :] * kept[self.columns])
        return kept

    def __reduce__(self) -> tuple[Any, ...]:
        return JointCosts, (self.joint, self.names, self.groups)


def predictable(model: nn.Module, joint: GroupsOfLayers, names: Sequence[str], example: Inputs) -> list[str]:
    """``names`` of layers and blocks without those that change the groups of others, or mispredict costs.

    example: the inputs of one sample. As for the layers themselves, all are tried together, and every second one.
    """
    names = list(names)
    if all(_predicted(model, joint, gone, example) for gone in (names, names[::2], names[1::2])):
        return names
    if len(names) == 1:
        return []
    half = len(names) // 2
    left = [*predictable(model, joint, names[:half], example), *predictable(model, joint, names[half:], example)]
    whole = len(left) == len(names) or not all(
        _predicted(model, joint, gone, example) for gone in (left, left[::2], left[1::2])
    )
    return [] if whole else left


def _predicted(model: nn.Module, joint: GroupsOfLayers, gone: Sequence[str], example: Inputs) -> bool:
    """True if the network without these layers has the groups and costs that are expected of it."""
    student = copy.deepcopy(model)
    remove_layers(student, joint.found, gone)
    with torch.random.fork_rng(devices=[]):
        found = channel_graph(student, example)
    expected = joint.without(gone)
    kept = np.maximum(1, found.units // 2)
    return (
        [_described(group) for group in found.groups] == [_described(group) for group in expected.groups]
        and found.costs(kept) == expected.costs(kept)
        and found.costs(found.units) == expected.costs(expected.units)
    )


def _described(group: ChannelGroup) -> Any:
    cuts = sorted((cut.layer, cut.side, cut.kind, cut.size, cut.index.tolist()) for cut in group.cuts)
    return group.name, group.units, group.noun, cuts


def _within(names: Iterable[str], modules: Collection[str]) -> set[str]:
    """Those of ``names`` that are one of the modules or inside one."""
    inside = tuple(f"{module}." for module in modules)
    return {name for name in names if name in modules or name.startswith(inside)}


def _module_of(cut: Cut) -> str:
    return cut.layer.rpartition(".")[0] if cut.kind in ATTRIBUTES else cut.layer


def _only(table: CostTable, columns: list[int]) -> CostTable:
    """The table of some of the groups; the others are out, and cost nothing."""
    own = [0, *(1 + column for column in columns)]
    return replace(
        table,
        each=table.each[:, :, columns],
        linear=table.linear[:, columns],
        single={name: counts[own] for name, counts in table.single.items()},
        modules={name: shares[:, own] for name, shares in table.modules.items()},
    )
