"""Hooks of a training, by which an algorithm keeps its constraint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

# Called with the number of optimizer steps done, before the first and after each; keeps a learner's constraint.
Hook = Callable[[int], None]


@runtime_checkable
class StatefulHook(Protocol):
    """A hook with tensors of its own, which a checkpoint keeps with the model's.

    ``load_state_dict`` also puts the model's constrained weights where that state has them: averaged weights
    (``averaging.py``) reach the constraint by it.
    """

    def __call__(self, step: int) -> None: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...
