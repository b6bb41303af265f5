"""Measurements of a model: accuracy, parameters, multiply-adds, bytes, each field named with its unit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pfray.errors import UnsupportedModel, first_line
from pfray.task import Split, Task


@dataclass(frozen=True)
class Measurement:
    """What a model is worth and what it costs.

    accuracy: mean score of the task, a fraction for classification. loss: mean loss.
    params: all parameters. nonzero_params: those that are not 0.0.
    macs: multiply-adds of one input through the dense model (1 MAC = one multiply and one add).
    size_bytes: bytes of the weights' file on disk; None where no file was written (in a trial).
    latency_ms: median time of one input; None where it was not timed.
    """

    accuracy: float
    loss: float
    params: int
    nonzero_params: int
    macs: int
    size_bytes: int | None = None
    latency_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def place(model: nn.Module, device: torch.device | str) -> nn.Module:
    """The same model on ``device``, its convolutions in the memory format that is fastest there."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Mixed precision for ``bf16``; nothing for ``float32``."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def evaluate(
    model: nn.Module, task: Task, split: Split, batch_size: int = 250, precision: str = "float32"
) -> tuple[float, float]:
    """(accuracy, loss) of ``model`` on ``split``, on the device that holds the model."""
    device = next(model.parameters()).device
    score, loss = 0.0, 0.0
    with evaluating(model):
        for inputs, targets in task.batches(split, batch_size, device):
            with autocast(device, precision):
                outputs = model(inputs.to(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs)
            outputs = outputs.float()
            score += task.score(outputs, targets).sum().item()
            loss += task.loss(outputs, targets).item() * len(targets)
    return score / len(split), loss / len(split)


def example_input(task: Task, device: torch.device | str = "cpu") -> Tensor:
    """``(1, C, H, W)``: the first training input, normalized."""
    return task.normalize(task.train.inputs[:1]).to(device)


def layer_macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply-adds of one forward pass of ``example``, by the name of the module that does them.

    Raises UnsupportedModel where the model's forward fails on the input.
    """
    names = {module: name for name, module in model.named_modules()}
    with FlopCounterMode(display=False) as counter, evaluating(model):
        try:
            model(example)
        except Exception as error:
            raise UnsupportedModel(
                f"the model {type(model).__name__} fails on an input of shape {tuple(example.shape)}: "
                f"{first_line(error)}. Remedy: choose a model for this shape, or data of another shape"
            ) from error
    root = type(model).__name__
    counts = {key.removeprefix(f"{root}."): sum(ops.values()) // 2 for key, ops in counter.get_flop_counts().items()}
    return {name: counts.get(name, 0) for name in names.values() if name}


def total_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds of one forward pass, convolutions and matrix products counted."""
    with FlopCounterMode(display=False) as counter, evaluating(model):
        model(example)
    return counter.get_total_flops() // 2


def count_params(model: nn.Module) -> tuple[int, int]:
    """(all parameters, those that are not zero)."""
    params = list(model.parameters())
    return sum(p.numel() for p in params), sum(int(torch.count_nonzero(p)) for p in params)


def measure(
    model: nn.Module, task: Task, split: Split, precision: str = "float32", macs: int | None = None
) -> Measurement:
    """Measure ``model`` on ``split``. ``macs`` may be given where it is already known, to save a pass."""
    accuracy, loss = evaluate(model, task, split, precision=precision)
    params, nonzero = count_params(model)
    if macs is None:
        macs = total_macs(model, example_input(task, next(model.parameters()).device))
    return Measurement(accuracy, loss, params, nonzero, macs)
