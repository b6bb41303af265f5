"""Results cached by model object, for as long as the model keeps its structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from pfray.nn.inputs import Inputs, map_tensors

T = TypeVar("T")


def once_for_structure(
    known: WeakKeyDictionary[nn.Module, tuple[Any, T]], model: nn.Module, example: Inputs, find: Callable[..., T]
) -> T:
    """``find(model, example)``, cached by model object until its structure or the example's form changes.

    The form is all of the example but the values of its tensors: their shapes and types, flags and numbers. known: the
    cache, for all models.
    """
    form = repr(map_tensors(lambda tensor: (tuple(tensor.shape), tensor.dtype), example))
    structure = form, [parameter.shape for parameter in model.parameters()]
    if model not in known or known[model][0] != structure:
        known[model] = structure, find(model, example)
    return known[model][1]
