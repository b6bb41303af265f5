"""Steps of recurrent layers, which a ``.tflite`` holds one by one.

LiteRT's operators for whole sequences (UNIDIRECTIONAL_SEQUENCE_LSTM) keep their state from one call to the next, so a
file's second answer would depend on its first input. litert-torch therefore writes every step, and its time grows with
their number.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from pfray.nn.inputs import Inputs, call, moved, take
from pfray.nn.modes import evaluating

# From so many steps on, users are told. Seconds of a step in two files, on one core.
MANY_STEPS, STEP_SECONDS = 100, 0.25


def unrolled_steps(model: nn.Module, example: Inputs) -> int:
    """Steps of all layers and directions of the model's LSTMs, GRUs and RNNs for one sample; 0 without any."""
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return 0
    clone, steps = copy.deepcopy(model).cpu(), 0

    def count(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal steps
        inputs = args[0] if args else kwargs["input"]
        inputs = getattr(inputs, "data", inputs)
        length = inputs.shape[1 if layer.batch_first and inputs.dim() == 3 else 0]
        steps += length * layer.num_layers * (2 if layer.bidirectional else 1)

    for module in clone.modules():
        if isinstance(module, nn.RNNBase):
            module.register_forward_pre_hook(count, with_kwargs=True)
    with evaluating(clone):
        call(clone, moved(take(example, slice(0, 1)), "cpu"))
    return steps
