"""Device, memory format, evaluation mode and mixed precision of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def place(model: nn.Module, device: torch.device | str) -> nn.Module:
    """The same model, moved to ``device`` with convolutions in channels_last, the fastest memory format."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


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
    """Images ``(N, C, H, W)`` in channels_last; other inputs unchanged."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
