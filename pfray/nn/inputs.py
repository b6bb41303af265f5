"""Inputs and outputs of a model in any form, and the one way to call a model.

A batch's inputs are what the model is called with: a tensor (``model(x)``), a tuple (``model(*x)``), a mapping
(``model(**x)``), or a list with one value for each sample (``model(x)``, as torchvision's detectors take images).
Tensors in a batch have the samples on axis 0. Values that are no tensors, such as ``None`` or a flag, are passed on as
they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# A tensor, or a tuple, list or mapping of values; outputs may also be dataclasses.
Inputs = Any


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that a model is called with."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple) else (inputs,)), {}


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The model's outputs."""
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


def tensors(tree: Any) -> list[Tensor]:
    """All tensors of inputs or outputs, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [tensor for value in _values(tree) for tensor in tensors(value)]


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same structure with ``function`` of every tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    return _rebuilt(tree, [map_tensors(function, value) for value in _values(tree)])


def count(inputs: Inputs) -> int:
    """Number of samples in a batch: the length of its first tensor or list. Raises ValueError for a batch without one.
    """
    if isinstance(inputs, Tensor | list):
        return len(inputs)
    for value in _values(inputs):
        if (isinstance(value, Tensor) and value.dim()) or isinstance(value, list | tuple | Mapping):
            return count(value)
    raise ValueError("the batch holds no tensor")


def take(tree: Any, which: slice | Tensor | Sequence[int]) -> Any:
    """The samples ``which`` of a batch, in the same structure."""
    if isinstance(tree, Tensor):
        return tree[which] if tree.dim() else tree
    if isinstance(tree, list):
        return tree[which] if isinstance(which, slice) else [tree[int(index)] for index in which]
    return _rebuilt(tree, [take(value, which) for value in _values(tree)])


def join(batches: Sequence[Any]) -> Any:
    """Batches of equal structure, one after the other. Values that are no tensors are those of the first batch."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(list(batches)) if first.dim() else first
    if isinstance(first, list):
        return [value for batch in batches for value in batch]
    return _rebuilt(first, [join(parts) for parts in zip(*map(_values, batches), strict=True)])


def _values(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return list(tree.values())
    if isinstance(tree, tuple | list):
        return list(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [getattr(tree, field.name) for field in dataclasses.fields(tree)]
    return []


def _rebuilt(tree: Any, values: list[Any]) -> Any:
    """``tree`` with other values in the order of ``_values``."""
    if isinstance(tree, Mapping):
        pairs = dict(zip(tree, values, strict=True))
        # transformers' outputs are mappings and dataclasses, and are made from keywords.
        return type(tree)(**pairs) if dataclasses.is_dataclass(tree) else pairs
    if isinstance(tree, tuple):
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    if isinstance(tree, list):
        return values
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return dataclasses.replace(tree, **dict(zip((f.name for f in dataclasses.fields(tree)), values, strict=True)))
    return tree
