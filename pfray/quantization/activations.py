"""Activations of few bits: inputs of quantized layers, rounded to 2^k levels of a range that is found once.

The range comes from a fixed set of training inputs through the model with float weights, so it is the same for every
plan. A submodule of the layer holds it and a forward pre-hook applies it; copies, pickles and exports keep both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pfray.errors import UnsupportedModel
from pfray.nn.attention import module_by_module
from pfray.nn.modes import evaluating, forward
from pfray.quantization import affine
from pfray.task import Task

NAME = "input_quantizer"
# Values sampled from a batch's inputs of one layer, in addition to the smallest and the largest.
SAMPLE = 4096

Ranges = dict[str, tuple[Tensor, Tensor]]


class InputQuantizer(nn.Module):
    """Rounds to the 2^bits levels low, low + step, ...; gradients pass where nothing is clipped.

    waiting: True in a training before its delay is over (``delayed_start.py``); ignored in evaluation mode.
    """

    low: Tensor
    step: Tensor

    def __init__(self, low: Tensor, step: Tensor, bits: int) -> None:
        super().__init__()
        self.bits, self.waiting = bits, False
        self.register_buffer("low", low.clone())
        self.register_buffer("step", step.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and self.waiting:
            return inputs
        return affine.fake_quantize(inputs, self.low, self.step, self.bits)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


def quantize_input(
    layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The forward pre-hook of a layer that has an ``input_quantizer``."""
    quantizer = layer.get_submodule(NAME)
    if inputs:
        return (quantizer(inputs[0]), *inputs[1:]), named
    return inputs, {**named, "input": quantizer(named["input"])}


def attach(model: nn.Module, name: str, low: Tensor, step: Tensor, bits: int) -> None:
    """Quantize the first input of the layer ``name`` from now on."""
    layer = model.get_submodule(name)
    layer.add_module(NAME, InputQuantizer(low, step, bits))
    layer.register_forward_pre_hook(quantize_input, with_kwargs=True)
    # An encoder around it would make nested tensors, which only the fused kernels take, and they know no hooks.
    for outer, encoder in model.named_modules():
        if isinstance(encoder, nn.TransformerEncoder) and name.startswith(f"{outer}.".lstrip(".")):
            encoder.use_nested_tensor = False


def input_ranges(
    model: nn.Module,
    names: list[str],
    task: Task,
    *,
    bits: int,
    images: int,
    method: affine.Range,
    percentile: float,
) -> Ranges:
    """(low ``(1,)``, step ``(1,)``) of the inputs of each layer, from the first ``images`` training inputs.

    Raises UnsupportedModel for a layer that does not run on them, or that reads NaN or infinite values.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def look(name: str, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        values = (inputs[0] if inputs else named["input"]).detach().float().flatten()
        stride = max(1, len(values) // SAMPLE)
        seen[name] += [values[::stride], *(end[None] for end in values.aminmax())]

    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, named, name=name: look(name, inputs, named), with_kwargs=True
        )
        for name in names
    ]
    device = next(model.parameters()).device
    try:
        with module_by_module(), evaluating(model):
            for inputs, _ in task.batches(task.train.head(images), 250, device):
                forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    ranges = {}
    for name, values in seen.items():
        if not values:
            raise UnsupportedModel(
                f"{name} does not run on the training inputs, so the range of what it reads is not known. "
                f"Remedy: learner.skip=[{name}], or learner.activation_bits=null"
            )
        if not (found := torch.cat(values)[None]).isfinite().all():
            raise UnsupportedModel(
                f"{name} reads values that are NaN or infinite on the first {images} training inputs, so they have no "
                "range. Remedy: inputs and weights that are numbers"
            )
        ranges[name] = affine.fit(found, bits, method=method, percentile=percentile)
    return ranges
