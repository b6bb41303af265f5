"""Numbers of channels that a module keeps as attributes, and reads in its forward pass: ``x.split(self.width, 1)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from pfray.pruning.channels.dependency import Candidate, Cut

# Most numbers of a candidate that are tried one by one.
TRIES = 8


def with_numbers(model: nn.Module, candidate: Candidate, goes: Callable[[Candidate], bool]) -> Candidate | None:
    """The candidate with the fewest attributes that are its number of channels; None if it cannot go with any.

    goes: tells whether a candidate can be removed. Other attributes that happen to be equal, such as a limit, stay.
    """
    found = _numbers(model, candidate)
    few = found[:TRIES]
    choices = [[cut] for cut in few]
    if len(found) > 1:
        choices.append(found)
    if len(found) > 2:
        choices += [[cut for cut in found if cut is not left] for left in few]
    for cuts in choices:
        if goes(replace(candidate, cuts=(*candidate.cuts, *cuts))):
            break
    else:
        return None
    for left in few if len(cuts) > 1 else ():
        fewer = [cut for cut in cuts if cut is not left]
        if left in cuts and goes(replace(candidate, cuts=(*candidate.cuts, *fewer))):
            cuts = fewer
    return replace(candidate, cuts=(*candidate.cuts, *cuts))


def _numbers(model: nn.Module, candidate: Candidate) -> list[Cut]:
    """Attributes that may be the candidate's number of channels.

    They belong to modules around its layers, and are an integer or in a tuple, such as a shape.
    """
    # A number may be of one channel of each unit, or of all that a layer has of them.
    sizes = {candidate.units * cut.index.shape[1] for cut in candidate.cuts} | {candidate.units}
    return [
        Cut(f"{name}.{attribute}".lstrip("."), "out", np.arange(size).reshape(-1, candidate.units).T, size, "NUMBER")
        for name in _around(candidate)
        for attribute, value in vars(model.get_submodule(name)).items()
        for size in sizes
        if size > 1 and not attribute.startswith("_") and holds(value, size)
    ]


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
