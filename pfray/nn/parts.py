"""Channels that a forward pass splits and shuffles, with parts of any size and in any order.

``chunk`` makes parts of one size, ``split`` parts of the sizes in its call, and a channel shuffle (Zhang et al. 2018)
swaps the two axes of a view. Often no channel can go without breaking one of these: in ShuffleNet-v2 (Ma et al. 2018)
halves and shuffles alternate until all channels depend on each other. A module that is *written out* computes the same
from the graph of its operations, in which ``Split`` and ``Shuffle`` are modules that can lose any channels. Its class,
its attributes and the names of its layers stay.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pfray.errors import UnsupportedModel
from pfray.nn.forward_graph import WrittenOut
from pfray.nn.fx import Untraceable, own_operations

VIEWS = {"view", "reshape"}
SWAPS = {"transpose", "swapaxes", "swapdims"}
COPIES = {"contiguous", "clone"}


class Split(nn.Module):
    """Parts of ``x`` along ``axis``: so many of one size, as by ``chunk``, or those of the given sizes."""

    def __init__(self, count: int, axis: int, sizes: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.count, self.axis, self.sizes = count, axis, sizes

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x`` as a tuple of ``count`` tensors."""
        return x.chunk(self.count, self.axis) if self.sizes is None else x.split(self.sizes, self.axis)

    @property
    def channels(self) -> int | None:
        """Channels that it splits; None if any number is."""
        return None if self.sizes is None else sum(self.sizes)

    def part_of(self, size: int) -> np.ndarray:
        """For each of ``size`` channels the number of its part, ``(size,)``."""
        sizes = self.sizes or tuple(len(part) for part in torch.arange(size).chunk(self.count))
        return np.repeat(np.arange(len(sizes)), sizes)

    def of(self, size: int, gone: np.ndarray) -> Split:
        """The split of ``size`` channels without those at the positions ``gone``."""
        left = np.bincount(np.delete(self.part_of(size), gone), minlength=self.count)
        return Split(self.count, self.axis, tuple(left.tolist()))


class Shuffle(nn.Module):
    """The channels of ``x`` ``(N, C, ...)`` in another order: that of a channel shuffle of ``groups``, or a given one.

    order: for each channel of the outputs the input's, ``(C,)``.
    """

    def __init__(self, groups: int, order: Tensor | None = None) -> None:
        super().__init__()
        self.groups, self.axis = groups, 1
        self.order: Tensor | None
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        """The same channels, ``(N, C, ...)``."""
        if self.order is None:
            return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return x.index_select(1, self.order)

    @property
    def channels(self) -> int | None:
        """Channels that it shuffles; None if any number is."""
        return None if self.order is None else len(self.order)

    def of(self, size: int, gone: np.ndarray) -> Shuffle:
        """The shuffle of ``size`` channels without those at the positions ``gone`` of the outputs."""
        order = np.arange(size).reshape(self.groups, -1).T.ravel() if self.order is None else self.order.cpu().numpy()
        left = np.delete(order, gone)
        return Shuffle(self.groups, torch.from_numpy(left.argsort().argsort()))


def write_out(module: nn.Module) -> bool:
    """Write out ``module``, in place, if it shuffles channels or splits them into sizes written in its forward pass.

    False if it does not, or if its operations cannot be followed; then nothing has changed.
    """
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = inspect.signature(module.forward).parameters.values()
    if isinstance(module, Split | Shuffle) or any(parameter.kind in variable for parameter in given):
        return False
    try:
        graphs = own_operations(module)
    except Untraceable:
        return False
    found = {training: list(_found(graph)) for training, graph in graphs.items()}
    kinds = [[(type(new), vars(new).get("sizes")) for _, _, new in each] for each in found.values()]
    if kinds[0] != kinds[1] or all(kind is Split and sizes is None for kind, sizes in kinds[0]):
        return False
    names = []
    for _, _, new in found[False]:
        names.append(next(name for name in _names(type(new).__name__.lower()) if not hasattr(module, name)))
        module.add_module(names[-1], new)
    for training, graph in graphs.items():
        _put(graph, {node: (source, name) for (node, source, _), name in zip(found[training], names, strict=True)})
    module.forward = WrittenOut(module, graphs)
    return True


def _put(graph: fx.Graph, places: Mapping[fx.Node, tuple[fx.Node, str]]) -> None:
    """Call modules in place of nodes. places: (the node that it reads, the module's name) by node, in order."""
    made: dict[fx.Node, fx.Node] = {}
    for node, (source, name) in places.items():
        read, unused = made.get(source, source), node
        with graph.inserting_before(node):
            made[node] = graph.call_module(name, (read,))
        node.replace_all_uses_with(made[node])
        while unused is not read and not unused.users:
            before = _argument(unused, 0, "input")
            graph.erase_node(unused)
            unused = before


def take_channels(module: nn.Module, name: str, size: int, gone: np.ndarray) -> None:
    """Take channels out of the split or shuffle ``name`` of ``module``, in place, which is written out first.

    size: the number of its channels. gone: their positions. Raises UnsupportedModel for a module without it.
    """
    if not hasattr(module, name) and not write_out(module):
        raise UnsupportedModel(
            f"{type(module).__name__} has no {name} of channels, for which the channel graph was made. Remedy: prune a "
            "copy of the model it was made for, or make a new graph"
        )
    old: Any = module.get_submodule(name)
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
    module._modules[name] = old.of(size, gone).to(device)


def _names(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}{number}"
        number += 1


def _found(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node, nn.Module]]:
    """(node, the node that it reads, the module in its place) of every split and shuffle."""
    for node in graph.nodes:
        source = _argument(node, 0, "input")
        if not isinstance(source, fx.Node):
            continue
        if _called(node) in ("chunk", "split"):
            given = _argument(node, 1, "chunks", "split_size", "split_size_or_sections")
            axis = _argument(node, 2, "dim")
            if axis and _called(node) == "chunk" and isinstance(given, int):
                yield node, source, Split(given, axis)
            elif axis and isinstance(given, tuple | list) and all(type(size) is int for size in given):
                yield node, source, Split(len(given), axis, tuple(given))
        elif _called(node) == "channel_shuffle":
            yield node, source, Shuffle(_argument(node, 1, "groups"))
        elif _called(node) in VIEWS and (shuffled := _shuffled(source)) is not None:
            yield node, *shuffled


def _shuffled(swap: Any) -> tuple[fx.Node, Shuffle] | None:
    """(the node whose channels are shuffled, the shuffle), if ``swap`` swaps the parts that a view makes of an axis."""
    while _called(swap) in COPIES:
        swap = swap.args[0]
    if _called(swap) not in {*SWAPS, "permute"}:
        return None
    axes, view = _numbers(swap), swap.args[0]
    if _called(swap) in SWAPS and set(axes) != {1, 2}:
        return None
    if _called(swap) == "permute" and axes != (0, 2, 1, *range(3, len(axes))):
        return None
    shape = _numbers(view) if _called(view) in VIEWS else ()
    groups = shape[1] if len(shape) > 3 else None
    return (view.args[0], Shuffle(groups)) if type(groups) is int and groups > 1 else None


def _numbers(node: fx.Node) -> tuple[Any, ...]:
    """Axes or sizes of a call: ``x.view(2, 3)`` and ``x.view((2, 3))``."""
    given = node.args[1:]
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], tuple | list) else given


def _called(node: Any) -> str:
    """Name of the function or method that a node calls."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return ""
    return str(getattr(node.target, "__name__", node.target))


def _argument(node: fx.Node, position: int, *names: str) -> Any:
    given = (node.kwargs[name] for name in names if name in node.kwargs)
    return node.args[position] if len(node.args) > position else next(given, None)
