"""What a model costs: parameters, multiply-adds and bits, counted exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pfray.errors import UnsupportedModel, first_line
from pfray.nn.modes import evaluating, evaluation_mode

T = TypeVar("T")

FLOAT_BITS = 32


def once_for_structure(
    known: WeakKeyDictionary[nn.Module, tuple[Any, T]], model: nn.Module, example: Tensor, find: Callable[..., T]
) -> T:
    """``find(model, example)``, once for a model object, and again where its structure or the example's has changed.

    known: what was found before, of all models.
    """
    shapes = [example.shape, *(parameter.shape for parameter in model.parameters())]
    if model not in known or known[model][0] != shapes:
        known[model] = shapes, find(model, example)
    return known[model][1]


def layer_macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply-adds of one forward pass of ``example``, by the name of the module that does them.

    Raises UnsupportedModel where the model's forward fails on the input.
    """
    names = {module: name for name, module in model.named_modules()}
    # Not in inference mode: there lazy layers would make weights that cannot learn, and the counter trips over weights
    # that are computed.
    with FlopCounterMode(display=False) as counter, evaluation_mode(model), torch.no_grad():
        try:
            model(example)
        except (Exception, SystemExit) as error:
            reason = "it ends the program" if isinstance(error, SystemExit) else first_line(error)
            raise UnsupportedModel(
                f"the model {type(model).__name__} fails on an input of shape {tuple(example.shape)}: "
                f"{reason}. Remedy: choose a model for this shape, or data of another shape"
            ) from error
    root = type(model).__name__
    counts = {key.removeprefix(f"{root}."): sum(ops.values()) // 2 for key, ops in counter.get_flop_counts().items()}
    return {name: counts.get(name, 0) for name in names.values() if name}


def total_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds of one forward pass, convolutions and matrix products counted."""
    # Without parameters that want a gradient: the counter trips over one that is handed from module to module.
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
    """(all parameters, those that are not zero)."""
    params = list(model.parameters())
    return sum(p.numel() for p in params), sum(int(torch.count_nonzero(p)) for p in params)


def stored_bits(model: nn.Module) -> int:
    """Bits of all parameters, each counted once; of a quantized weight its codes, not what describes its buckets."""
    found: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            bits = getattr(module, f"{name}_bits", None)
            # Of layers that share a weight one says how many bits it has.
            if bits is not None or parameter not in found:
                found[parameter] = 8 * parameter.element_size() if bits is None else int(bits)
    return sum(parameter.numel() * bits for parameter, bits in found.items())


def stored_bytes(params: float, weights: np.ndarray | float = 0.0, bits: np.ndarray | float = FLOAT_BITS) -> float:
    """Bytes of ``params`` parameters in float32 of which, in each layer, so many ``weights`` have so many ``bits``.

    As ``stored_bits``: without what describes the buckets. Nor is a file's own overhead in it.
    """
    return float(params * FLOAT_BITS - np.sum(weights * (FLOAT_BITS - bits))) / 8
