"""The form in which a model goes into files: as it was trained, or one of its own, such as integers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from pfray.quantization import qparams


@runtime_checkable
class Shipped(Protocol):
    """The methods of a model with a form of its own (``Int8Model``).

    rounds: True if the .tflite rounds to 8 bits, and may differ from the model by a step here and there.
    quantizer: litert-torch's, None for a .tflite of floats.
    """

    rounds: bool
    quantizer: Any

    def converted(self, folded: bool = False) -> nn.Module:
        """The module to export, in evaluation mode, on the CPU. folded: for .pt2, otherwise for litert-torch."""

    def weights(self) -> Mapping[str, Tensor]:
        """The state dict to pack."""

    def operators(self) -> Mapping[str, tuple[str, str]]:
        """(``int8`` or ``float``, reason) by operator; empty if the .tflite is written in float."""

    def unrounded(self) -> AbstractContextManager[bool]:
        """Within it the model computes without rounding; gives False for a model without rounding of its own."""


def shipped(model: nn.Module) -> Shipped:
    """``model`` itself if it has a form of its own, otherwise a ``Float`` around it."""
    return model if isinstance(model, Shipped) else Float(model)


@dataclass
class Float:
    """A model that is exported as it was trained."""

    model: nn.Module
    rounds: bool = False
    quantizer: Any = None

    def converted(self, folded: bool = False) -> nn.Module:
        clone = copy.deepcopy(self.model).cpu().eval()
        if not folded:
            qparams.forget(clone)  # litert-torch refuses buffers that no operator reads
        return clone

    def weights(self) -> Mapping[str, Tensor]:
        return self.model.state_dict()

    def operators(self) -> Mapping[str, tuple[str, str]]:
        return {}

    def unrounded(self) -> AbstractContextManager[bool]:
        return nullcontext(False)
