"""Parameters, multiply-adds and bits of a model, counted exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pfray.errors import UnsupportedModel, first_line
from pfray.nn.modes import evaluating, evaluation_mode
from pfray.utils.user_code import place_of

FLOAT_BITS = 32


def layer_macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply-adds of one forward pass of ``example``, by module name. Raises UnsupportedModel if the pass fails."""
    names = {module: name for name, module in model.named_modules()}
    # Not in inference mode: lazy layers would then make weights that cannot learn, and the counter fails on computed
    # weights.
    with FlopCounterMode(display=False) as counter, evaluation_mode(model), torch.no_grad():
        try:
            model(example)
        except (Exception, SystemExit) as error:
            reason = "it ends the program" if isinstance(error, SystemExit) else first_line(error)
            reason += place_of(error)
            raise UnsupportedModel(
                f"the model {type(model).__name__} fails on an input of shape {tuple(example.shape)}: "
                f"{reason}. Remedy: choose a model for this shape, or data of another shape"
            ) from error
    root = type(model).__name__
    counts = {key.removeprefix(f"{root}."): sum(ops.values()) // 2 for key, ops in counter.get_flop_counts().items()}
    return {name: counts.get(name, 0) for name in names.values() if name}


def total_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds of one forward pass, convolutions and matrix products counted."""
    # Without gradients: the counter fails on a parameter that is passed from module to module.
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    try:
        with FlopCounterMode(display=False) as counter, evaluating(model):
            model(example)
    finally:
        for parameter in trained:
            parameter.requires_grad_()
    return counter.get_total_flops() // 2


def count_params(model: nn.Module) -> tuple[int, int]:
    """(count of all parameters, count of nonzero ones)."""
    params = list(model.parameters())
    return sum(p.numel() for p in params), sum(int(torch.count_nonzero(p)) for p in params)


def stored_bits(model: nn.Module) -> int:
    """Bits of all parameters, each counted once; quantized weights by their codes, without bucket descriptions."""
    found: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            bits = getattr(module, f"{name}_bits", None)
            # Only one of the layers that share a weight says how many bits it has.
            if bits is not None or parameter not in found:
                found[parameter] = 8 * parameter.element_size() if bits is None else int(bits)
    return sum(parameter.numel() * bits for parameter, bits in found.items())


def stored_bytes(params: float, weights: np.ndarray | float = 0.0, bits: np.ndarray | float = FLOAT_BITS) -> float:
    """Bytes of ``params`` float32 parameters, of which ``weights`` in each layer have ``bits`` bits instead.

    As ``stored_bits``, without bucket descriptions; also without a file's overhead.
    """
    return float(params * FLOAT_BITS - np.sum(weights * (FLOAT_BITS - bits))) / 8
