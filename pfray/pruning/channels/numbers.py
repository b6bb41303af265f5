"""Numbers of channels that a module keeps as attributes, and reads in its forward pass: ``x.split(self.width, 1)``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from pfray.pruning.channels.dependency import Candidate, Cut

# Most numbers of a candidate that are tried one by one.
TRIES = 8


def with_numbers(model: nn.Module, candidate: Candidate) -> Iterator[Candidate]:
    """The candidate with attributes that may be its number of channels, to be tried: all of them, then one by one.

    They belong to modules around its layers, and are an integer or in a tuple, such as a shape.
    """
    # A number may be of one channel of each unit, or of all that a layer has of them.
    sizes = {candidate.units * cut.index.shape[1] for cut in candidate.cuts} | {candidate.units}
    found = [
        Cut(f"{name}.{attribute}".lstrip("."), "out", np.arange(size).reshape(-1, candidate.units).T, size, "NUMBER")
        for name in _around(candidate)
        for attribute, value in vars(model.get_submodule(name)).items()
        for size in sizes
        if size > 1 and not attribute.startswith("_") and holds(value, size)
    ]
    choices = [found, *([cut] for cut in found[:TRIES])] if len(found) > 1 else [found] if found else []
    for cuts in choices:
        yield replace(candidate, cuts=(*candidate.cuts, *cuts))


def holds(value: Any, size: int) -> bool:
    """True if an attribute is ``size``, or a tuple with it in one place."""
    if isinstance(value, tuple):
        return [type(part) is int and part == size for part in value].count(True) == 1
    return type(value) is int and value == size


def with_size(value: Any, old: int, new: int) -> Any:
    """The attribute with another size."""
    return type(value)(new if part == old else part for part in value) if isinstance(value, tuple) else new


def _around(candidate: Candidate) -> list[str]:
    """Names of the modules around the layers, and of those that own the parameters."""
    names: dict[str, None] = {}
    for cut in candidate.cuts:
        parts = cut.layer.split(".")[:-1]
        names |= {".".join(parts[:length]): None for length in range(len(parts), -1, -1)}
    return list(names)
