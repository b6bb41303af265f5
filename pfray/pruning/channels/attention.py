"""Attention heads as units: a head's rows of the queries, keys and values, and the columns that read it.

An attention is recognized by its structure. A layer (the projection) reads, through operations among which is a softmax
or a fused attention, the outputs of other layers (queries, keys, values, packed in one layer or not). The module around
those has numbers that count the heads. What the numbers mean and how packed rows are ordered is guessed in turns;
pfray.pruning.channels.proof decides. torch's own ``nn.MultiheadAttention`` has everything inside and is known by name.

Notation: U units, each a head or, where several heads share their keys, one of these groups of heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch_pruning.ops import OPTYPE

from pfray.nn.attention import HeadAttention
from pfray.pruning.channels.dependency import MAKERS, Candidate, Cut
from pfray.pruning.channels.inside import Axis, Inside, positions
from pfray.pruning.channels.stand_ins import without_nested
from pfray.pruning.channels.trace import Trace

# Layers at which the way back from a projection ends.
ENDS = {*MAKERS, OPTYPE.DEPTHWISE_CONV, OPTYPE.MHA, OPTYPE.LSTM}
# Words in the names of autograd's functions that compare tokens.
COMPARING = ("Softmax", "Attention")
# Words in an attribute's name that make its number a size, not a count.
SIZES = ("dim", "size", "width", "channel", "feature", "inner", "hidden", "emb")
# Most guesses for one attention.
TRIES = 16


@dataclass(frozen=True, eq=False)
class _Attention:
    """reader: the projection. makers: the layers it reads. owner: name of the module that counts the heads."""

    reader: Any
    makers: tuple[Any, ...]
    owner: str


@dataclass(frozen=True)
class _Guess:
    """units: U. source: the number that says so. packed: rows of several kinds lie kind by kind, not head by head.

    totals: numbers that equal a layer's width shrink too. tables: the owner's own tensors have an entry for each head.
    """

    units: int
    source: str
    packed: bool
    totals: bool
    tables: bool


def find_heads(model: nn.Module, traced: nn.Module, trace: Trace) -> list[list[Candidate]]:
    """For every attention the candidates it may be, the likeliest first, in execution order.

    traced: the copy that was traced, in which stand-ins may be.
    """
    rank = {name: index for index, name in enumerate(trace.order)}
    names = {module: name for name, module in traced.named_modules()}
    known = {name: module for name, module in model.named_modules() if _is_known(module)}
    found = [[_whole_module(model, name)] for name in trace.order if name in known]
    for attentions in _joined(_attentions(model, trace, names)):
        guesses = itertools.islice(_guesses(model, trace.graph, attentions), TRIES)
        variants = [_candidate(model, trace.graph, names, rank, attentions, guess) for guess in guesses]
        if variants:
            found.append(variants)
    return sorted(found, key=lambda variants: min(rank.get(cut.layer, len(rank)) for cut in variants[0].cuts))


def with_needed_sizes(candidate: Candidate, goes: Callable[[Candidate], bool]) -> Candidate:
    """The heads with the fewest sizes that shrink: others happen to be equal, as the width of the inputs often is.

    goes: tells whether a candidate can be removed.
    """
    for place, cut in enumerate(candidate.cuts):
        for size in cut.inside.numbers if cut.kind == "HEADS" and cut.inside else ():
            own = candidate.cuts[place].inside
            if own is None or not _is_size(size[0]):
                continue
            inside = replace(own, numbers=tuple(each for each in own.numbers if each != size))
            cuts = [replace(other, inside=inside) if other is candidate.cuts[place] else other
                    for other in candidate.cuts]  # fmt: skip
            if goes(fewer := replace(candidate, cuts=tuple(cuts))):
                candidate = fewer
    return candidate


def _is_known(module: Any) -> bool:
    return type(module) in (nn.MultiheadAttention, HeadAttention) and module.num_heads > 1


def _whole_module(model: nn.Module, name: str) -> Candidate:
    module: Any = model.get_submodule(name)
    heads, width = module.num_heads, module.num_heads * module.head_dim
    parts = {"in_proj_weight": (0, 3), "in_proj_bias": (0, 3), "bias_k": (2, 1), "bias_v": (2, 1)}
    parts |= {f"{each}_proj_weight": (0, 1) for each in "qkv"}
    axes = tuple(Axis(own, *place) for own, place in parts.items() if getattr(module, own) is not None)
    inside = Inside(axes, (("num_heads", heads),))
    every = np.arange(heads)[:, None]
    cuts = [
        Cut(name, "out", every, heads, "HEADS", inside=inside),
        Cut(f"{name}.out_proj".lstrip("."), "in", positions(width, heads), width, "LINEAR"),
    ]
    cuts += without_nested(model, name, cuts[0])
    return Candidate(name, tuple(cuts), None, frozenset(), "heads")


def _attentions(model: nn.Module, trace: Trace, names: Mapping[nn.Module, str]) -> Iterator[_Attention]:
    for node in trace.graph.module2node.values():
        if node.type not in (OPTYPE.LINEAR, OPTYPE.CONV) or node.module not in names:
            continue
        makers, operations = _sources(node)
        compares = any(word in operation for operation in operations for word in COMPARING)
        known = all(maker.type in MAKERS and maker.module in names for maker in makers)
        if not compares or not known or node in makers:
            continue
        inner = [names[maker.module] for maker in makers if maker.type != OPTYPE.EMBED]
        for owner in _around(inner, names[node.module]) if inner else ():
            if any(_numbers(model.get_submodule(owner))):
                yield _Attention(node, tuple(makers), owner)
                break


def _sources(node: Any) -> tuple[list[Any], set[str]]:
    """(layers that ``node`` reads, names of the operations on the way)."""
    found: dict[Any, None] = {}
    operations, waiting, seen = set(), list(node.inputs), set()
    while waiting:
        each = waiting.pop()
        if each.type in ENDS:
            found[each] = None
        elif each not in seen:
            seen.add(each)
            operations.add(each.grad_fn.name() if hasattr(each.grad_fn, "name") else "")
            waiting += each.inputs
    return list(found), operations


def _around(inner: Sequence[str], reader: str) -> list[str]:
    """Modules around the layers ``inner``, from the innermost to the one that holds ``reader`` too."""
    parts = [name.split(".")[:-1] for name in inner]
    shared = [own[0] for own in itertools.takewhile(lambda own: len(set(own)) == 1, zip(*parts, strict=False))]
    outer = reader.split(".")[:-1]
    least = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(shared, outer, strict=False))))
    return [".".join(shared[:length]) for length in range(len(shared), least - 1, -1)]


def _joined(attentions: Iterable[_Attention]) -> list[list[_Attention]]:
    """Attentions that share a layer or the number of their heads, together."""
    groups: list[list[_Attention]] = []
    for attention in attentions:
        own = {attention.owner, attention.reader, *attention.makers}
        alike = [g for g in groups if any(own & {other.owner, other.reader, *other.makers} for other in g)]
        groups = [g for g in groups if g not in alike] + [[*(one for g in alike for one in g), attention]]
    return groups


def _numbers(owner: nn.Module) -> dict[str, int]:
    numbers = {name: value for name, value in vars(owner).items() if type(value) is int and value > 1}
    return {name: value for name, value in numbers.items() if not name.startswith("_")}


def _is_size(name: str) -> bool:
    return any(word in name.lower() for word in SIZES)


def _guesses(model: nn.Module, graph: Any, attentions: Sequence[_Attention]) -> Iterator[_Guess]:
    """Possible meanings of the numbers and rows, the likeliest first."""
    first = model.get_submodule(attentions[0].owner)
    widths = _widths(graph, attentions)
    read = graph.get_in_channels(attentions[0].reader)
    numbers = _numbers(first)
    sizes = {name: value for name, value in numbers.items() if _is_size(name)}
    counts = sorted(numbers.keys() - sizes.keys(), key=lambda name: ("head" not in name.lower(), -numbers[name], name))
    ways = [(numbers[name], name) for name in counts if "head" in name.lower()]
    # The size of a head; of keys that several heads share there are fewer.
    ways += [(whole // size, name) for whole in (read, min(widths)) for name, size in sizes.items()]
    ways += [(numbers[name], name) for name in counts if "head" not in name.lower()]
    packed = any(_parts(graph, each, maker) > 1 for each in attentions for maker in each.makers)
    for (units, source), by_kind in itertools.product(dict.fromkeys(ways), (True, False) if packed else (False,)):
        if units < 2 or any(width % units for width in widths):
            continue
        for totals, tables in itertools.product((False, True), repeat=2):
            yield _Guess(units, source, by_kind, totals, tables)


def _candidate(
    model: nn.Module, graph: Any, names: Mapping[nn.Module, str], rank: Mapping[str, int],
    attentions: Sequence[_Attention], guess: _Guess,
) -> Candidate:  # fmt: skip
    cuts: dict[tuple[str, str], Cut] = {}
    sizes: set[int] = set()
    widths = _widths(graph, attentions)
    for each in attentions:
        if each.owner not in (name for name, _ in cuts):
            inside = _inside(model.get_submodule(each.owner), widths, guess)
            index = np.arange(guess.units)[:, None]
            cuts[each.owner, "heads"] = Cut(each.owner, "out", index, guess.units, "HEADS", inside=inside)
        for maker in each.makers:
            width = graph.get_out_channels(maker)
            parts = _parts(graph, each, maker) if guess.packed else 1
            index = positions(width, guess.units, parts)
            sizes |= {width // parts} - {guess.units}
            cuts[names[maker.module], "out"] = Cut(names[maker.module], "out", index, width, maker.type.name)
        width, name = graph.get_in_channels(each.reader), names[each.reader.module]
        cuts[name, "in"] = Cut(name, "in", positions(width, guess.units), width, each.reader.type.name)
    ordered = sorted(
        cuts.values(), key=lambda cut: (cut.kind != "HEADS", rank.get(cut.layer, len(rank)), cut.side == "in")
    )
    name = ordered[0].layer
    if not name or any(cut.layer == name and cut.kind != "HEADS" for cut in ordered):
        # The network itself, or a layer whose channels are a group too.
        name = f"{names[attentions[0].reader.module]}#heads"
    return Candidate(name, tuple(ordered), None, frozenset(), "heads" if len(sizes) == 1 else "groups of heads")


def _inside(owner: nn.Module, widths: set[int], guess: _Guess) -> Inside:
    """Numbers and tensors of ``owner`` that shrink with the heads."""
    numbers = {}
    for name, value in _numbers(owner).items():
        counts = not _is_size(name) and ("head" in name.lower() or name == guess.source)
        if (counts and value % guess.units == 0) or (guess.totals and _is_size(name) and value in widths):
            numbers[name] = value
    axes = []
    tensors: dict[str, Tensor | None] = {**owner._parameters, **owner._buffers}
    for name, tensor in tensors.items() if guess.tables else ():
        lengths = enumerate(tensor.shape if tensor is not None else ())
        along = [axis for axis, length in lengths if length in {guess.units, *numbers.values(), *widths}]
        if along:
            axes.append(Axis(name, along[-1]))
    return Inside(tuple(axes), tuple(numbers.items()))


def _widths(graph: Any, attentions: Sequence[_Attention]) -> set[int]:
    """Widths of the layers that make heads or read them."""
    return {width for each in attentions
            for width in (graph.get_in_channels(each.reader), *map(graph.get_out_channels, each.makers))}  # fmt: skip


def _parts(graph: Any, attention: _Attention, maker: Any) -> int:
    """Kinds of rows (queries, keys, values) that a layer holds."""
    parts, rest = divmod(graph.get_out_channels(maker), graph.get_in_channels(attention.reader))
    return parts if rest == 0 else 1
