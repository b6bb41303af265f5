"""Parameters, multiply-adds and bits of a model, counted exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pfray.errors import UnsupportedModel, first_line
from pfray.measure.macs import count_macs
from pfray.nn.inputs import Inputs, shapes
from pfray.utils.user_code import place_of

FLOAT_BITS = 32


def layer_macs(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Multiply-adds of one forward pass in evaluation mode, by module name. Raises UnsupportedModel if it fails."""
    try:
        _, macs = count_macs(model, inputs)
    except (Exception, SystemExit) as error:
        reason = "it ends the program" if isinstance(error, SystemExit) else first_line(error)
        reason += place_of(error)
        raise UnsupportedModel(
            f"the model {type(model).__name__} fails on {shapes(inputs)}: {reason}. Remedy: choose a model for this "
            "input, or data of another shape"
        ) from error
    return {name: count for name, count in macs.items() if name}


def total_macs(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-adds of one forward pass in evaluation mode."""
    return count_macs(model, inputs)[0]


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
