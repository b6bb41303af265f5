"""Moves of channels through single operations: the positions they arrive at, and those that have to be equal.

Notation as in ``dependency.py``. Sizes come from the shapes that autograd has recorded.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from torch_pruning.ops import OPTYPE

Side = Literal["out", "in"]


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
    if source.type == OPTYPE.RESHAPE and (parts := _parts_of_view(source, width)) and _swaps(node.grad_fn, len(old)):
        return before, after % parts[1] * parts[0] + after // parts[1], width
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
    if operation_of(node) == "IndexSelect" and _is_along(axis, node.grad_fn._saved_dim, old):
        order = node.grad_fn._saved_index.numpy()
        places = [np.flatnonzero(order == position) for position in after]
        return before.repeat([len(own) for own in places]), np.concatenate([before[:0], *places]), len(order)
    if operation_of(node) == "ConstantPadNd":
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


def _parts_of_view(node: Any, width: int) -> tuple[int, int] | None:
    """(parts P, channels in each) of a view that splits the axis of the ``width`` channels, ``(N, C, ...)`` to ``(N, P,
    C / P, ...)``. Tokens ``(N, L, C)`` become an image ``(N, H, W, C)`` by the same view, which splits no channels.
    """
    function, number = node.grad_fn.next_functions[0] if node.grad_fn else (None, 0)
    if function is None:
        return None
    old, new = tuple(function._input_metadata[number].shape), tuple(node.grad_fn._input_metadata[0].shape)
    splits = len(new) == len(old) + 1 > 3 and min(new[1:3]) > 1 and new[1] * new[2] == old[1] == width
    return (new[1], new[2]) if splits and old[0] == new[0] and old[2:] == new[3:] else None


def _swaps(function: Any, dimensions: int) -> bool:
    """True for an operation that swaps the axes 1 and 2 and leaves the others."""
    order = list(range(dimensions))
    if hasattr(function, "_saved_dims"):
        order = [_signed(axis) % dimensions for axis in function._saved_dims]
    elif hasattr(function, "_saved_dim0"):
        one, two = (_signed(axis) % dimensions for axis in (function._saved_dim0, function._saved_dim1))
        order[one], order[two] = two, one
    return order == [0, 2, 1, *range(3, dimensions)]


def _signed(number: int) -> int:
    """The signed value of a number that autograd has saved as unsigned."""
    return number - 2**64 if number >= 2**63 else number


def parts_alike(graph: Any, node: Any, side: Side, width: int) -> tuple[int, int]:
    """(number of parts, channels in each) that have to lose the same channels, so that they stay equally large: groups
    of a convolution or a group norm, and the parts of ``chunk``, ``split`` and of a view."""
    if node.type in (OPTYPE.CONV, OPTYPE.GN):
        parts = node.module.groups if node.type == OPTYPE.CONV else node.module.num_groups
        return parts, (size_of(graph, node, side) or 0) // parts
    if node.type == OPTYPE.RESHAPE and (split := _parts_of_view(node, width)):
        return split
    if node.type == OPTYPE.SPLIT and hasattr(node.grad_fn, "_saved_self_sym_sizes"):
        shape = node.grad_fn._saved_self_sym_sizes
        axis = _axis(shape, width)
        if axis is not None and _is_along(axis, node.grad_fn._saved_dim, shape):
            sizes = {metadata.shape[axis] for metadata in node.grad_fn._input_metadata}
            share = min(sizes)
            return (width // share, share) if len(sizes) == 1 else (1, width)
    return 1, width


def parameter_axis(node: Any) -> int:
    """Axis of the channels in a parameter: the second of images, if it varies along it, or else the last that it has.
    """
    shape = node.module.shape
    varying = [axis for axis, size in enumerate(shape) if size > 1]
    made = node.outputs[0].grad_fn._input_metadata[0].shape if node.outputs and node.outputs[0].grad_fn else ()
    second = 1 - (len(made) - len(shape))
    return second if len(made) > 3 and second in varying else varying[-1]


def size_of(graph: Any, node: Any, side: Side) -> int | None:
    """Entries of a layer's side; None for a layer without any (a PReLU with one parameter)."""
    return graph.get_out_channels(node) if side == "out" else graph.get_in_channels(node)


def operation_of(node: Any) -> str:
    """Name of the operation in autograd, such as ``ConstantPadNd``."""
    return node.grad_fn.name().rpartition("Backward")[0] if hasattr(node.grad_fn, "name") else str(node.type.name)
