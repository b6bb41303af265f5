"""Device, memory format, evaluation mode and mixed precision of a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pfray.nn.inputs import Inputs, call, map_tensors, tensors

# Attribute of a model whose forward pass needs contiguous tensors (``x.view(len(x), -1)``). Copies have it too.
CONTIGUOUS = "_pfray_contiguous"


def place(model: nn.Module, device: torch.device | str) -> nn.Module:
    """The same model, moved to ``device`` with 2-d convolutions in channels_last, the fastest memory format.

    A model that ``settle_memory_format`` found to need contiguous tensors keeps them.
    """
    model.to(device)
    if not hasattr(model, CONTIGUOUS):
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return model


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """The outputs of a ``place``d model, its inputs in the same memory format."""
    # Data-parallel training wraps the model.
    contiguous = hasattr(getattr(model, "module", model), CONTIGUOUS)
    return call(model, inputs if contiguous else map_tensors(channels_last, inputs))


def keep_memory_format(model: nn.Module, made: nn.Module) -> None:
    """Mark the model ``made`` from ``model`` as that one is marked by ``settle_memory_format``."""
    if hasattr(model, CONTIGUOUS):
        setattr(made, CONTIGUOUS, True)


def settle_memory_format(model: nn.Module, inputs: Inputs) -> None:
    """Mark ``model`` if it runs on ``inputs`` but not on the same in channels_last, as flattening by ``view`` does not.
    """
    if all(tensor.dim() != 4 for tensor in (*tensors(inputs), *model.parameters())):
        return
    with evaluating(model):
        try:
            forward(place(copy.deepcopy(model), "cpu"), inputs)
        except Exception:
            call(model, inputs)
            setattr(model, CONTIGUOUS, True)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's own mode is restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored afterwards."""
    with evaluation_mode(model), torch.inference_mode():
        yield


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Mixed precision for ``bf16``; nothing for ``float32``."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def channels_last(inputs: Tensor) -> Tensor:
    """Images ``(N, C, H, W)`` in channels_last; other tensors unchanged."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
