"""Channels that must go together: torch-pruning's dependency graph, read edge by edge into units.

Notation: a *side* is a layer's output or input, and its entries (channels, features) have *positions* 0, 1, ... . Two
positions are coupled if removing one forces the other out: a convolution's output channel with the batch norm's, with
the next layer's input, with its partner in an addition. A *unit* is a connected component of this relation; units that
take the same number of entries from the same sides form a *candidate* (Fang et al. 2023, "DepGraph").

torch-pruning gives the order of layers and operations. It guesses sizes where positions move on the way (concatenation,
padding, split, slice, flatten); here they come from the shapes that autograd has recorded. Remaining mistakes are found
by pfray.pruning.channels.admission, which tries every candidate on numbers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn
from torch.nn.utils import parametrize
from torch_pruning.ops import OPTYPE

from pfray.nn.parts import Split
from pfray.pruning.channels.inside import Inside
from pfray.pruning.channels.moves import Side, move_channels, operation_of, parameter_axis, parts_alike, size_of
from pfray.pruning.channels.trace import Trace

# A node of torch-pruning's graph and one of its sides; operations and batch norms have "out" only.
Place = tuple[Any, Side]
# Channels of one place, and the channels of another place that they become or are coupled with.
Coupling = tuple[Place, np.ndarray, Place, np.ndarray]

# Layers that make channels; and with them what passes channels on. All can lose entries.
MAKERS = {OPTYPE.CONV, OPTYPE.LINEAR, OPTYPE.EMBED}
PASSING = {OPTYPE.DEPTHWISE_CONV, OPTYPE.BN, OPTYPE.IN, OPTYPE.LN, OPTYPE.GN, OPTYPE.PRELU, OPTYPE.PARAMETER}
CUTTABLE = {*MAKERS, *PASSING}
OUTPUT = "its channels are an output of the model"
UNREAD = "no layer reads them"


@dataclass(frozen=True, eq=False)
class Cut:
    """One side of one layer that loses entries when a unit goes.

    layer: its name in ``model.named_modules()``; of a parameter that the forward pass reads by itself (a scale, a class
    token), the parameter's name. index: ``(U, r)``, the r positions that go with each of U units. size: entries of the
    side in the whole layer. kind: torch-pruning's type of the layer, which selects its pruner. axis: the channels' axis
    in a parameter. inside: what shrinks in a module that is neither. A split or shuffle has the positions of its inputs
    or outputs, and the kind ``PARTS``.
    """

    layer: str
    side: Side
    index: np.ndarray
    size: int
    kind: str
    axis: int = 0
    inside: Inside | None = None


@dataclass(frozen=True, eq=False)
class Candidate:
    """Units of one kind.

    name: the first layer, in execution order, that makes the channels. obstacle: why the units cannot be removed, if
    that is known already. passes: the operations that the channels go through. noun: what a unit is called. number:
    among the layer's candidates, from 1, so that a group keeps its name when another is pruned to one unit.
    """

    name: str
    cuts: tuple[Cut, ...]
    obstacle: str | None
    passes: frozenset[str]
    noun: str = "channels"
    number: int = 1

    @property
    def units(self) -> int:
        return len(self.cuts[0].index)

    @property
    def sides(self) -> set[tuple[str, Side]]:
        """Sides of layers that lose entries."""
        return {(cut.layer, cut.side) for cut in self.cuts if cut.kind != "SETTING"}


def find_candidates(model: nn.Module, trace: Trace) -> list[Candidate]:
    """All candidates in a traced ``model``, in execution order."""
    graph = trace.graph
    names: dict[Any, str] = {module: name for name, module in model.named_modules()} | graph._param_to_name
    parts = {node: trace.parts[node.grad_fn] for node in graph.module2node.values() if node.grad_fn in trace.parts}
    names |= {node.module: name for node, name in parts.items()}
    rank = {name: index for index, name in enumerate(trace.order)}
    known, width, couplings = _spread(graph, parts)
    labels = _components(known, couplings)

    units: dict[int, dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
    obstacles: dict[int, str] = {}
    passes: dict[int, set[str]] = defaultdict(set)
    for (node, side), members in labels.items():
        is_layer = node.type == OPTYPE.PARAMETER or (node.module in names and node not in parts)
        size = size_of(graph, node, side) if is_layer else None
        obstacle = OUTPUT if side == "out" and node.grad_fn in trace.ends else _obstacle(graph, node, side, names)
        for position, label in members.items():
            if obstacle is not None:
                obstacles.setdefault(label, obstacle)
            if not is_layer:
                passes[label].add(operation_of(node))
                if node in parts:
                    units[label][node, side].append(position)
            elif size is not None and position >= size:
                obstacles.setdefault(label, f"reshaped or mixed before they reach {names[node.module]}")
            elif node.type in CUTTABLE and size is not None:
                units[label][node, side].append(position)

    def taken(place: Place, positions: list[int]) -> tuple[int, ...]:
        """For each channel of a unit at a place its part of the split there, of which the sizes thus follow from counts
        of units; elsewhere 0."""
        split = model.get_submodule(parts[place[0]]) if place[0] in parts else None
        own = split.part_of(width[place])[positions] if isinstance(split, Split) else np.zeros(len(positions), int)
        return tuple(sorted(own.tolist()))

    alike: dict[Any, list[int]] = defaultdict(list)
    for label, places in units.items():
        signature = frozenset((place, taken(place, positions)) for place, positions in places.items())
        alike[signature, obstacles.get(label)].append(label)
    found: list[tuple[Any, Candidate]] = []
    for (_, obstacle), own in alike.items():
        # Parameters run no forward pass, and come last.
        ways = sorted(units[own[0]], key=lambda place: (rank.get(names[place[0].module], len(rank)), place[1] == "in"))
        root = next((place for place in ways if place[1] == "out" and place[0].type in MAKERS), None)
        if root is None:
            continue
        own.sort(key=lambda label: min(units[label][root]))
        cuts = tuple(
            Cut(names[node.module], side, np.array([sorted(units[label][node, side]) for label in own]),
                width[node, side] if node in parts else size_of(graph, node, side) or 0,
                "PARTS" if node in parts else node.type.name, max(0, node.pruning_dim or 0))
            for node, side in ways
        )  # fmt: skip
        through = frozenset(name for label in own for name in passes[label])
        if all(cut.side == "out" for cut in cuts):
            obstacle = obstacle or UNREAD
        # Channels between shuffles are mixed: the first position of some changes as others go, and where they go does
        # not, so that candidates keep their numbers.
        reach = [(rank.get(cut.layer, len(rank)), cut.layer, cut.side, taken(place, units[own[0]][place]))
                 for cut, place in zip(cuts, ways, strict=True) if parts]  # fmt: skip
        name = names[root[0].module]
        found.append(((rank[name], reach, cuts[0].index.min()), Candidate(name, cuts, obstacle, through)))
    seen: Counter[str] = Counter()
    numbered = []
    for _, candidate in sorted(found, key=lambda each: each[0]):
        seen[candidate.name] += 1
        numbered.append(replace(candidate, number=seen[candidate.name]))
    return numbered


def _spread(graph: Any, free: Container[Any]) -> tuple[dict[Place, np.ndarray], dict[Place, int], list[Coupling]]:
    """(positions in use at every place, channels there, couplings): all channels are followed to their ends.

    free: nodes of operations whose parts may lose different channels.
    """
    nodes = list(graph.module2node.values())[::-1]
    known: dict[Place, np.ndarray] = {}
    width: dict[Place, int] = {}
    for node in nodes:
        if node.type == OPTYPE.PARAMETER:
            node.pruning_dim = parameter_axis(node)
        if node.type in (*MAKERS, OPTYPE.PARAMETER, OPTYPE.LSTM, OPTYPE.MHA):
            width[node, "out"] = graph.get_out_channels(node)
            known[node, "out"] = np.arange(width[node, "out"])
    found: dict[tuple[int, int], Coupling] = {}
    changed = True
    while changed:  # repeats for shared layers and for nodes out of execution order
        changed = False
        for number, node in enumerate(nodes):
            pruner = graph.get_pruner_of_module(node.module)
            target: Place = (node, "out" if pruner.prune_in_channels == pruner.prune_out_channels else "in")
            for slot, source in enumerate(node.inputs):
                start: Place = (source, "out")
                if start not in known:
                    continue
                before, after, size = move_channels(graph, source, node, slot, known[start], width[start])
                if len(after):
                    merged = np.union1d(known.get(target, after), after)
                    changed |= target not in known or len(merged) > len(known[target])
                    known[target], width[target] = merged, max(size, width.get(target, 0))
                    found[number, slot] = (start, before, target, after)
    couplings = list(found.values())
    for (node, side), positions in known.items():
        if node in free:
            continue
        parts, share = parts_alike(graph, node, side, width.get((node, side), 0))
        if parts > 1:
            inside = positions[positions < parts * share]
            couplings.append(((node, side), inside, (node, side), inside % share))
    return known, width, couplings


def _components(known: dict[Place, np.ndarray], couplings: list[Coupling]) -> dict[Place, dict[int, int]]:
    """Number of the connected component of every position, by place."""
    ends = np.cumsum([0, *(positions.max() + 1 for positions in known.values())])
    starts = dict(zip(known, ends.tolist(), strict=False))
    nothing = np.zeros(0, int)
    rows = np.concatenate([nothing, *(starts[place] + positions for place, positions, _, _ in couplings)])
    columns = np.concatenate([nothing, *(starts[place] + positions for _, _, place, positions in couplings)])
    matrix = coo_array((np.ones(len(rows)), (rows, columns)), shape=(ends[-1], ends[-1]))
    labels = connected_components(matrix, directed=False)[1]
    return {
        place: dict(zip(positions.tolist(), labels[starts[place] + positions].tolist(), strict=True))
        for place, positions in known.items()
    }


def _obstacle(graph: Any, node: Any, side: Side, names: dict[nn.Module, str]) -> str | None:
    """Reason why channels that arrive here cannot be removed; None if there is none."""
    if node.type == OPTYPE.LN and len(node.module.normalized_shape) > 1:
        return f"normalized across channels by {names[node.module]}"
    if node.type == OPTYPE.MHA:
        return f"split into the heads of {names[node.module]}"
    if node.type == OPTYPE.LSTM:
        return f"{'made' if side == 'out' else 'used'} by the recurrent layer {names[node.module]}"
    if node.type in MAKERS | {OPTYPE.DEPTHWISE_CONV} and "weight" not in node.module._parameters:
        return f"the weights of {names[node.module]} are computed from other tensors"
    if isinstance(node.module, nn.Module) and parametrize.is_parametrized(node.module):
        return f"the weights of {names[node.module]} are computed by a parametrization"
    return None
