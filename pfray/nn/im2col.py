"""im2col: convolutions and linear layers as matrix products of rows, at sampled output positions.

Notation: N inputs, P sampled output positions of each, R = N P rows; C input channels, K kernel positions, O outputs.
A row holds the inputs of one output position: ``(C K,)``, in the order of ``weight.flatten(1)``.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def draw_positions(layer: nn.Module, outputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random output positions ``(N, P)`` of each sample, with replacement, as indices into the flattened positions.

    outputs: of the layer, ``(N, O, ...)`` for convolutions and ``(N, ..., O)`` for linear layers. P is ``count``, or
    all positions if there are no more.
    """
    shape = outputs.shape[2:] if not isinstance(layer, nn.Linear) else outputs.shape[1:-1]
    places = math.prod(shape)
    if places <= count:
        return torch.arange(places).expand(len(outputs), places)
    return torch.randint(places, (len(outputs), count), generator=generator)


def input_rows(layer: nn.Module, inputs: Tensor, positions: Tensor) -> Tensor:
    """Rows ``(R, C K)`` of a dense layer at the output ``positions``."""
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
    # Channels last, so that all channels of a place are read at once.
    padded = padded.movedim(1, -1).contiguous()
    rows = inputs.new_empty(*positions.shape, inputs.shape[1], math.prod(kernel))
    for k, offset in enumerate(itertools.product(*(range(n) for n in kernel))):
        places = [c + o * d for c, o, d in zip(corner, offset, dilation, strict=True)]
        rows[..., k] = padded[(sample, *places)]
    return rows.flatten(0, 1).flatten(1)


def output_rows(layer: nn.Module, outputs: Tensor, positions: Tensor) -> Tensor:
    """Rows ``(R, O)`` of a tensor in the layer's output shape, at the ``positions``."""
    linear = isinstance(layer, nn.Linear)
    places = outputs.reshape(len(outputs), -1, outputs.shape[-1]) if linear else outputs.flatten(2).transpose(1, 2)
    sample = torch.arange(len(outputs), device=positions.device)[:, None].expand_as(positions)
    return places[sample, positions].flatten(0, 1)


def weight_rows(layer: nn.Module) -> Tensor:
    """The weight as a matrix ``(C K, O)`` in float64, which multiplies rows."""
    weight = layer.get_parameter("weight").detach()
    return weight.flatten(1).T.double()


def rows_of_channels(layer: nn.Module, channels: np.ndarray) -> np.ndarray:
    """Indices ``(n K,)`` of the rows of ``weight_rows`` that belong to input ``channels`` ``(n,)``."""
    kernel = layer.get_parameter("weight").shape[2:].numel()
    return (channels[:, None] * kernel + np.arange(kernel)).ravel()
