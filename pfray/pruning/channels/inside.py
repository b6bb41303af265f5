"""Parameters and numbers inside a module that is no plain layer, such as an attention, and how they shrink.

Notation: a module has S entries (heads, hidden features). They lie in order along an axis of some of its own tensors,
each as a run of equal length; the axis may hold all of them several times, part after part (queries, keys, values).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfray.nn.attention import spell_out


@dataclass(frozen=True)
class Axis:
    """An axis, of ``parts`` parts, of the module's own parameter or buffer ``tensor``.

    reads: the tensor is a matrix that reads the entries along this axis, and does not make them.
    """

    tensor: str
    axis: int
    parts: int = 1
    reads: bool = False


@dataclass(frozen=True)
class Inside:
    """numbers: attributes, with their values in the whole module, that shrink in proportion (``num_heads``).

    settings: attributes that get another value once an entry goes.
    """

    axes: tuple[Axis, ...] = ()
    numbers: tuple[tuple[str, int], ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()

    def entries(self, module: nn.Module, size: int) -> int:
        """Entries that ``module`` has now, ``size`` if it is whole."""
        return next((getattr(module, name) * size // whole for name, whole in self.numbers), size)

    def shrink(self, module: Any, gone: np.ndarray, size: int) -> None:
        """Take the entries ``gone`` out of ``size``, in place. ``requires_grad`` is kept."""
        stay = np.setdiff1d(np.arange(size), gone)
        for own in self.axes:
            old = getattr(module, own.tensor)
            places = torch.from_numpy(positions(old.shape[own.axis], size, own.parts)[stay]).flatten().sort().values
            new = old.detach().index_select(own.axis, places.to(old.device))
            setattr(module, own.tensor, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        for name, whole in self.numbers:
            setattr(module, name, whole * len(stay) // size)
        for name, value in self.settings:
            setattr(module, name, value)
        if isinstance(module, nn.MultiheadAttention):
            spell_out(module)

    def mask(self, module: Any, gone: np.ndarray, size: int) -> None:
        """Set the weights that read the entries ``gone`` to 0.0, in place."""
        for own in self.axes:
            if own.reads:
                weight = getattr(module, own.tensor)
                places = torch.from_numpy(positions(weight.shape[own.axis], size, own.parts)[gone]).flatten()
                masked = weight.detach().index_fill(own.axis, places, 0.0)
                setattr(module, own.tensor, nn.Parameter(masked, weight.requires_grad))

    def magnitudes(self, module: nn.Module, size: int) -> np.ndarray:
        """Sum of |w| over the weights (not biases) that make each entry, ``(size,)``."""
        total = np.zeros(size)
        for own in self.axes:
            tensor: Tensor = getattr(module, own.tensor)
            if tensor.dim() > 1 and isinstance(tensor, nn.Parameter) and not own.reads:
                each = tensor.detach().double().abs().movedim(own.axis, 0).flatten(1).sum(1).cpu().numpy()
                total += each[positions(len(each), size, own.parts)].sum(1)
        return total


def positions(length: int, size: int, parts: int = 1) -> np.ndarray:
    """Positions ``(size, length / size)`` of each entry along an axis of ``length``."""
    return np.arange(length).reshape(parts, size, -1).swapaxes(0, 1).reshape(size, -1)
