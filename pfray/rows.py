"""A convolution or linear layer as what it is, a matrix product: the rows it multiplies and the rows it gives.

Notation: N inputs, P sampled output positions of each, R = N P rows; C input channels, K kernel positions, O outputs.
A row is what the layer sees to make one output position: ``(C K,)``, in the order of ``weight.flatten(1)``.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.measure import evaluation_mode

Dense = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


# Wider rows than this would make matrices of gigabytes.
MAX_WIDTH = 8192


def is_dense(module: nn.Module) -> bool:
    """Whether every output of the layer sees every input channel, so that it is one matrix product; and one that can
    be solved for, with rows of at most ``MAX_WIDTH``."""
    dense = isinstance(module, Dense) and getattr(module, "groups", 1) == 1
    return dense and module.get_parameter("weight")[0].numel() <= MAX_WIDTH


def draw_positions(layer: nn.Module, outputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``(N, P)`` random output positions of each sample, with replacement, as indices into the flattened positions.

    outputs: what the layer gave, ``(N, O, ...)`` for convolutions and ``(N, ..., O)`` for linear layers. P is at most
    ``count``, and at most the number of positions there are.
    """
    shape = outputs.shape[2:] if not isinstance(layer, nn.Linear) else outputs.shape[1:-1]
    places = math.prod(shape)
    if places <= count:
        return torch.arange(places).expand(len(outputs), places)
    return torch.randint(places, (len(outputs), count), generator=generator)


def input_rows(layer: nn.Module, inputs: Tensor, positions: Tensor) -> Tensor:
    """``(R, C K)``: the rows behind the output ``positions``. The layer is dense."""
    sample = torch.arange(len(inputs), device=positions.device)[:, None].expand_as(positions)
    if isinstance(layer, nn.Linear):
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])[sample, positions].flatten(0, 1)
    assert isinstance(layer, nn.modules.conv._ConvNd)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode)
    kernel, dilation = layer.kernel_size, layer.dilation
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    shape = [(n - s) // t + 1 for n, s, t in zip(padded.shape[2:], spans, layer.stride, strict=True)]
    corner = [axis * t for axis, t in zip(torch.unravel_index(positions, tuple(shape)), layer.stride, strict=True)]
    # Channels last, so that one place of all channels is read at once.
    padded = padded.movedim(1, -1).contiguous()
    rows = inputs.new_empty(*positions.shape, inputs.shape[1], math.prod(kernel))
    for k, offset in enumerate(itertools.product(*(range(n) for n in kernel))):
        places = [c + o * d for c, o, d in zip(corner, offset, dilation, strict=True)]
        rows[..., k] = padded[(sample, *places)]
    return rows.flatten(0, 1).flatten(1)


def output_rows(layer: nn.Module, outputs: Tensor, positions: Tensor) -> Tensor:
    """``(R, O)``: a tensor of the layer's output shape at the ``positions``."""
    linear = isinstance(layer, nn.Linear)
    places = outputs.reshape(len(outputs), -1, outputs.shape[-1]) if linear else outputs.flatten(2).transpose(1, 2)
    sample = torch.arange(len(outputs), device=positions.device)[:, None].expand_as(positions)
    return places[sample, positions].flatten(0, 1)


def weight_rows(layer: nn.Module) -> Tensor:
    """``(C K, O)`` in float64: the matrix that rows are multiplied with."""
    weight = layer.get_parameter("weight").detach()
    return weight.flatten(1).T.double()


def rows_of_channels(layer: nn.Module, channels: np.ndarray) -> np.ndarray:
    """The rows of ``weight_rows`` that input ``channels`` have, ``(n,)`` to ``(n K,)``."""
    kernel = layer.get_parameter("weight").shape[2:].numel()
    return (channels[:, None] * kernel + np.arange(kernel)).ravel()


def shift_output(model: nn.Module, name: str, norms: Mapping[str, str], shift: Tensor) -> None:
    """Add a constant ``(O,)`` to the layer's outputs: in its bias, or else in the batch norm behind it."""
    layer: Any = model.get_submodule(name)
    if layer.bias is not None:
        layer.bias.data += shift.to(layer.bias)
    else:
        norm: Any = model.get_submodule(norms[name])
        norm.running_mean -= shift.to(norm.running_mean)


def can_shift(model: nn.Module, name: str, norms: Mapping[str, str]) -> bool:
    """Whether there is a place for such a constant."""
    return model.get_submodule(name).bias is not None or name in norms


@torch.no_grad()
def norms_behind(model: nn.Module, example: Tensor, wanted: Callable[[nn.Module], bool] = is_dense) -> dict[str, str]:
    """Which batch norm reads a layer's output directly, channel by channel, by the layer's name.

    Layers and batch norms that are run more than once, and layers that several batch norms read, are left out.
    wanted: which modules are asked about.
    """
    makers: dict[int, tuple[str, int]] = {}
    pairs: list[tuple[str, str]] = []
    runs: Counter[str] = Counter()
    reads: Counter[str] = Counter()
    alive = []  # the outputs, so that no two have the same id
    handles = []

    def made(name: str, layer: nn.Module, output: Tensor) -> None:
        runs[name] += 1
        alive.append(output)
        # A batch norm takes the second axis for channels, which of (N, T, F) are not what the linear layer makes.
        if not isinstance(layer, nn.Linear) or output.dim() == 2:
            makers[id(output)] = name, output._version

    def read(name: str, inputs: tuple[Tensor, ...]) -> None:
        runs[name] += 1
        layer, version = makers.get(id(inputs[0]), ("", 0)) if inputs else ("", 0)
        # An operation in between may have been done in place, which its version tells.
        if layer and inputs[0]._version == version:
            pairs.append((layer, name))
            reads[layer] += 1

    for name, module in model.named_modules():
        if wanted(module):
            handles.append(module.register_forward_hook(lambda layer, _, output, name=name: made(name, layer, output)))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(lambda _, inputs, name=name: read(name, inputs)))
    try:
        with evaluation_mode(model):
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: norm for layer, norm in pairs if runs[layer] == runs[norm] == reads[layer] == 1}
