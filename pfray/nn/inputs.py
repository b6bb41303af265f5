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

from pfray.errors import short

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
    return [tensor for _, tensor in named_tensors(tree)]


def named_tensors(tree: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """(name, tensor) of all tensors in order: ``name`` alone for a tensor, ``name[0]`` and ``name.ids`` for parts."""
    if isinstance(tree, Tensor):
        return [(name, tree)]
    return [found for key, value in _parts(tree) for found in named_tensors(value, f"{name}{key}")]


def map_tensors(function: Callable[[Any], Any], tree: Any, kind: type = Tensor) -> Any:
    """The same structure with ``function`` of every tensor, or of every value of another ``kind``."""
    if isinstance(tree, kind):
        return function(tree)
    return _rebuilt(tree, [map_tensors(function, value, kind) for _, value in _parts(tree)])


def moved(tree: Any, device: torch.device | str) -> Any:
    """The same structure with every tensor on ``device``. What is copied to a GPU may still be on its way there, and
    what is done with it waits for it."""
    to_gpu = torch.device(device).type == "cuda"
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=to_gpu), tree)


def floats(outputs: Any) -> Any:
    """The outputs with floating-point tensors in float32."""
    return map_tensors(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, outputs)


def count(inputs: Inputs) -> int:
    """Number of samples in a batch: the length of its first tensor or list. Raises ValueError for a batch without one.
    """
    if isinstance(inputs, Tensor | list):
        return len(inputs)
    for _, value in _parts(inputs):
        if (isinstance(value, Tensor) and value.dim()) or isinstance(value, list | tuple | Mapping):
            return count(value)
    raise ValueError("the batch holds no tensor")


def shapes(batch: Any, noun: str = "input") -> str:
    """The shapes of a batch's tensors in words, with types other than float32: ``an input of shape (1, 3, 8, 8)``, or
    ``inputs of shapes ids int64 (1, 5), mask (1, 5)``. noun: input or output."""
    found = [(name.lstrip("."), form(tensor).removeprefix("float32 ")) for name, tensor in named_tensors(batch)]
    if len(found) == 1:
        return f"an {noun} of shape {found[0][1]}"
    return f"{noun}s of shapes {', '.join(f'{name} {shape}' for name, shape in found)}"


def form(tree: Any) -> str:
    """Type and shape of a tensor, ``float32 (2, 4)``; of other values their type, and the tensors in them."""
    if isinstance(tree, Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')} {tuple(tree.shape)}"
    found = ", ".join(f"{name.lstrip('.')} {form(tensor)}" for name, tensor in named_tensors(tree))
    kind = "None" if tree is None else f"a {type(tree).__name__}"
    return f"{kind} of {short(found)}" if found else kind


def take(tree: Any, which: slice | Tensor | Sequence[int]) -> Any:
    """The samples ``which`` of a batch, in the same structure."""
    if isinstance(tree, Tensor):
        return tree[which] if tree.dim() else tree
    if isinstance(tree, list):
        return tree[which] if isinstance(which, slice) else [tree[int(index)] for index in which]
    return _rebuilt(tree, [take(value, which) for _, value in _parts(tree)])


def join(batches: Sequence[Any]) -> Any:
    """Batches of equal structure, one after the other. Values that are no tensors are those of the first batch."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(list(batches)) if first.dim() else first
    if isinstance(first, list):
        return [value for batch in batches for value in batch]
    columns = zip(*([value for _, value in _parts(batch)] for batch in batches), strict=True)
    return _rebuilt(first, [join(parts) for parts in columns])


def _parts(tree: Any) -> list[tuple[str, Any]]:
    """(how it is reached, value) of each part of a tuple, list, mapping or dataclass."""
    if isinstance(tree, Mapping):
        return [(f".{key}", value) for key, value in tree.items()]
    if isinstance(tree, tuple | list):
        return [(f"[{index}]", value) for index, value in enumerate(tree)]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(f".{field.name}", getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    return []


def _rebuilt(tree: Any, values: list[Any]) -> Any:
    """``tree`` with other values in the order of ``_parts``."""
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
