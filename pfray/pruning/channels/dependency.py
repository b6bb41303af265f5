"""Channels that must go together: torch-pruning's dependency graph, read edge by edge into units.

Notation: a *side* is a layer's output or input, and its entries (channels, features) have *positions* 0, 1, ... . Two
positions are coupled if removing one forces the other out: a convolution's output channel with the batch norm's, with
the next layer's input, with its partner in an addition. A *unit* is a connected component of this relation; units that
take the same number of entries from the same sides form a *candidate* (Fang et al. 2023, "DepGraph").

torch-pruning gives the order of layers and operations. It guesses sizes where positions move on the way (concatenation,
padding, split, slice, flatten); here they come from the shapes that autograd has recorded. Remaining mistakes are found
by pfray.pruning.channels.graph, which tries every candidate on numbers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn
from torch.nn.utils import parametrize
from torch_pruning.ops import OPTYPE

from pfray.pruning.channels.inside import Inside
from pfray.pruning.channels.trace import Trace

Side = Literal["out", "in"]
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
    in a parameter. inside: what shrinks in a module that is neither.
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
    rank = {name: index for index, name in enumerate(trace.order)}
    labels = _components(*_spread(graph))

    units: dict[int, dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
    obstacles: dict[int, str] = {}
    passes: dict[int, set[str]] = defaultdict(set)
    for (node, side), members in labels.items():
        is_layer = node.type == OPTYPE.PARAMETER or node.module in names
        size = _size(graph, node, side) if is_layer else None
        obstacle = OUTPUT if side == "out" and node.grad_fn in trace.ends else _obstacle(graph, node, side, names)
        for position, label in members.items():
            if obstacle is not None:
                obstacles.setdefault(label, obstacle)
            if not is_layer:
                passes[label].add(_operation(node))
            elif size is not None and position >= size:
                obstacles.setdefault(label, f"reshaped or mixed before they reach {names[node.module]}")
            elif node.type in CUTTABLE and size is not None:
                units[label][node, side].append(position)

    alike: dict[Any, list[int]] = defaultdict(list)
    for label, parts in units.items():
        signature = frozenset((place, len(positions)) for place, positions in parts.items())
        alike[signature, obstacles.get(label)].append(label)
    found = []
    for (_, obstacle), own in alike.items():
        # Parameters run no forward pass, and come last.
        ways = sorted(units[own[0]], key=lambda place: (rank.get(names[place[0].module], len(rank)), place[1] == "in"))
        root = next((place for place in ways if place[1] == "out" and place[0].type in MAKERS), None)
        if root is None:
            continue
        own.sort(key=lambda label: min(units[label][root]))
        cuts = tuple(
            Cut(names[node.module], side, np.array([sorted(units[label][node, side]) for label in own]),
                _size(graph, node, side) or 0, node.type.name, max(0, node.pruning_dim))
            for node, side in ways
        )  # fmt: skip
        through = frozenset(name for label in own for name in passes[label])
        if all(cut.side == "out" for cut in cuts):
            obstacle = obstacle or UNREAD
        found.append(Candidate(names[root[0].module], cuts, obstacle, through))
    found.sort(key=lambda candidate: (rank[candidate.name], candidate.cuts[0].index.min()))
    seen: Counter[str] = Counter()
    for position, candidate in enumerate(found):
        seen[candidate.name] += 1
        found[position] = replace(candidate, number=seen[candidate.name])
    return found


def _spread(graph: Any) -> tuple[dict[Place, np.ndarray], list[Coupling]]:
    """(positions in use at every place, couplings between them): all channels are followed to their ends."""
    nodes = list(graph.module2node.values())[::-1]
    known: dict[Place, np.ndarray] = {}
    width: dict[Place, int] = {}
    for node in nodes:
        if node.type == OPTYPE.PARAMETER:
            node.pruning_dim = _parameter_axis(node)
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
        parts, share = _equal_parts(graph, node, side, width.get((node, side), 0))
        if parts > 1:
            inside = positions[positions < parts * share]
            couplings.append(((node, side), inside, (node, side), inside % share))
    return known, couplings


def _equal_parts(graph: Any, node: Any, side: Side, width: int) -> tuple[int, int]:
    """(number of parts, channels in each) that have to lose the same channels, so that they stay equally large: groups
    of a convolution or a group norm, and the parts of ``chunk`` and ``split``."""
    if node.type in (OPTYPE.CONV, OPTYPE.GN):
        parts = node.module.groups if node.type == OPTYPE.CONV else node.module.num_groups
        return parts, (_size(graph, node, side) or 0) // parts
    if node.type == OPTYPE.SPLIT and hasattr(node.grad_fn, "_saved_self_sym_sizes"):
        shape = node.grad_fn._saved_self_sym_sizes
        axis = _axis(shape, width)
        if axis is not None and _is_along(axis, node.grad_fn._saved_dim, shape):
            sizes = {metadata.shape[axis] for metadata in node.grad_fn._input_metadata}
            share = min(sizes)
            return (width // share, share) if len(sizes) == 1 else (1, width)
    return 1, width


def _parameter_axis(node: Any) -> int:
    """Axis of the channels in a parameter: the second of images, if it varies along it, or else the last that it has.
    """
    shape = node.module.shape
    varying = [axis for axis, size in enumerate(shape) if size > 1]
    made = node.outputs[0].grad_fn._input_metadata[0].shape if node.outputs and node.outputs[0].grad_fn else ()
    second = 1 - (len(made) - len(shape))
    return second if len(made) > 3 and second in varying else varying[-1]


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


def move_channels(
    graph: Any, source: Any, node: Any, slot: int, positions: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Follow channels from ``source`` into input ``slot`` of ``node``.

    positions: the channels, out of ``width``. Returns (the channels that arrive, their positions there, width there).
    """
    inputs = [(f, n) for f, n in node.grad_fn.next_functions if _is_input(graph, f)] if node.grad_fn else []
    if len(inputs) != len(node.inputs):
        # Only the last call of a layer with several is known; nothing lies between it and its inputs.
        return positions, positions, width
    function, number = inputs[slot]
    before = after = positions
    if source.type == OPTYPE.SPLIT and hasattr(function, "_saved_self_sym_sizes"):
        axis = _axis(function._saved_self_sym_sizes, width)
        if axis is not None and _is_along(axis, function._saved_dim, function._saved_self_sym_sizes):
            sizes = [metadata.shape[axis] for metadata in function._input_metadata]
            before, after = _shift(before, after, -sum(sizes[:number]), sizes[number])
            width = sizes[number]
    old, new = function._input_metadata[number].shape, node.grad_fn._input_metadata[0].shape
    axis = _axis(old, width)
    if axis is None or node.type <= OPTYPE.DEPTHWISE_CONV:
        return before, after, width
    if node.type == OPTYPE.CONCAT and _is_along(axis, node.grad_fn._saved_dim, new):
        sizes = [f and f._input_metadata[n].shape[axis] for f, n in node.grad_fn.next_functions]
        part = [i for i, (f, _) in enumerate(node.grad_fn.next_functions) if _is_input(graph, f)][slot]
        # autograd does not know the size of a part without gradient, such as the model's input.
        missing = new[axis] - sum(size or 0 for size in sizes)
        offset = sum(missing if size is None else size for size in sizes[:part])
        return (*_shift(before, after, offset, new[axis]), new[axis])
    if node.type == OPTYPE.SLICE and _is_along(axis, node.module.dim, new):
        start, step = _signed(node.module.start) % max(1, old[axis]), node.module.step
        inside = (after - start) % step == 0
        return (*_shift(before[inside], (after[inside] - start) // step, 0, new[axis]), new[axis])
    if _operation(node) == "ConstantPadNd":
        front = [*node.grad_fn._saved_pad, *[0] * 2 * len(new)][2 * (len(new) - 1 - axis)]
        return (*_shift(before, after, _signed(front), new[axis]), new[axis])
    if node.type == OPTYPE.RESHAPE and old[0] == new[0] and axis == 1:
        if len(old) > len(new) == 2:  # flatten: all pixels of a channel lie side by side
            stride = new[1] // old[1]
            return before.repeat(stride), (after[:, None] * stride + np.arange(stride)).ravel(), new[1]
        if len(new) > len(old) == 2:
            return before, after // (old[1] // new[1]), new[1]
    if len(old) == len(new) and old[axis] == 1 < new[axis]:
        return before[:0], after[:0], width  # broadcast over the channels, so it is coupled with none
    return before, after, width


def _is_input(graph: Any, function: Any) -> bool:
    """True if torch-pruning has a node for an operation's input: not for constants and layers' weights."""
    return function is not None and (not hasattr(function, "variable") or function.variable in graph.module2node)


def _shift(before: np.ndarray, after: np.ndarray, offset: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Move by ``offset`` and drop positions outside of ``size``."""
    inside = (after + offset >= 0) & (after + offset < size)
    return before[inside], after[inside] + offset


def _axis(shape: tuple[int, ...], width: int) -> int | None:
    """Axis of an activation that holds its ``width`` channels: the second (images), or else the last (tokens)."""
    return next((axis for axis in (1, len(shape) - 1) if 0 < axis < len(shape) and shape[axis] == width), None)


def _is_along(axis: int, dimension: int, shape: tuple[int, ...]) -> bool:
    return _signed(dimension) % len(shape) == axis


def _signed(number: int) -> int:
    """The signed value of a number that autograd has saved as unsigned."""
    return number - 2**64 if number >= 2**63 else number


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


def _size(graph: Any, node: Any, side: Side) -> int | None:
    """Entries of a layer's side; None for a layer without any (a PReLU with one parameter)."""
    return graph.get_out_channels(node) if side == "out" else graph.get_in_channels(node)


def _operation(node: Any) -> str:
    """Name of the operation in autograd, such as ``ConstantPadNd``."""
    return node.grad_fn.name().rpartition("Backward")[0] if hasattr(node.grad_fn, "name") else str(node.type.name)
