"""Batch norm folded into the layer before it.

Notation: the layer gives y = W x + c, and the batch norm, with its running statistics, g (y - m) / sqrt(v + e) + h.
With t = g / sqrt(v + e) both together are the layer W' = t W, c' = t (c - m) + h, output channel by output channel.

A step of r on W, with fixed statistics and g, is a step of r t^2 on W': dL/dW = t dL/dW', and W' moves t times as far
as W. A folded layer's gradient is therefore multiplied by t^2. Otherwise the small t of trained networks would make
their learning rate many times too large.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pfray.nn.dense import Dense, behind_norm, norms_behind
from pfray.nn.inputs import Inputs, map_tensors, tensors
from pfray.nn.modes import evaluating, forward

# Relative, in float64, where rounding is far smaller than any real change of the model.
TOLERANCE = 1e-6


def foldable_norms(model: nn.Module, example: Inputs) -> dict[str, str]:
    """Batch norms that can be folded into a layer, by the layer's name; ``model`` stays as it is.

    The layer's output goes to the batch norm directly and nowhere else, and both run once. Proven by the outputs for
    ``example`` in float64; empty if the model cannot run so, or gives no floats.
    """
    weights = [id(m.weight) for m in model.modules() if isinstance(m, Dense)]
    pairs = {
        layer: norm
        for layer, norm in norms_behind(model, example, lambda module: isinstance(module, Dense)).items()
        if weights.count(id(model.get_submodule(layer).weight)) == 1
    }
    exact = copy.deepcopy(model).double()
    try:
        before = outputs_in_float64(exact, example)
    except Exception:
        return {}  # it cannot run in float64, so nothing can be proven
    if not before:
        return {}  # class numbers and masks prove nothing: they are the same for almost any change
    if _same(exact, pairs, example, before):
        return pairs
    # The outputs differ if another module reads the tensor between layer and norm; then each pair is tried by itself.
    return {layer: norm for layer, norm in pairs.items() if _same(exact, {layer: norm}, example, before)}


@torch.no_grad()
def fold(model: nn.Module, norms: dict[str, str]) -> None:
    """Fold batch norms, by layer name, in place; an identity replaces each, or the activation that it holds.

    The layers then train as they did in front of their norms. Copies of them lose the hook and need
    ``train_as_unfolded``.
    """
    scales = channel_scales(model, norms)
    for name, norm_name in norms.items():
        layer: Any = model.get_submodule(name)
        norm: Any = model.get_submodule(norm_name)
        bias = -norm.running_mean.double() + (0 if layer.bias is None else layer.bias.double())
        shift = bias * scales[name] + (0 if norm.bias is None else norm.bias.double())
        layer.weight.copy_(layer.weight.double() * _by_channel(scales[name], layer.weight))
        layer.bias = nn.Parameter(shift.to(layer.weight), requires_grad=_learns_bias(layer, norm))
        train_as_unfolded(layer.weight, scales[name])
        left = behind_norm(norm)
        model.set_submodule(norm_name, left[0] if len(left) == 1 else nn.Sequential(*left) if left else nn.Identity())


@torch.no_grad()
def channel_scales(model: nn.Module, norms: dict[str, str]) -> dict[str, Tensor]:
    """t of each output channel, ``(O,)`` float64, by layer name."""
    scales = {}
    for name, norm_name in norms.items():
        norm: Any = model.get_submodule(norm_name)
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scales[name] = scale if norm.weight is None else scale * norm.weight.double()
    return scales


def train_as_unfolded(weight: nn.Parameter, scale: Tensor) -> None:
    """Multiply the gradient of a folded weight by t^2, so that a learning rate means the same as before."""
    if weight.requires_grad:
        factors = _by_channel(scale.square(), weight).to(weight)
        weight.register_hook(lambda gradient: gradient * factors)


def _learns_bias(layer: Any, norm: Any) -> bool:
    """True if training moved the biases that are folded into one; without any, if it moved the layer's weight."""
    biases = [bias for bias in (layer.bias, norm.bias) if bias is not None]
    return any(each.requires_grad for each in biases or [layer.weight])


def _by_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.dim() - 1))


def folded(model: nn.Module, norms: dict[str, str]) -> nn.Module:
    """A copy of ``model`` with batch norms folded."""
    own = copy.deepcopy(model)
    fold(own, norms)
    return own


def _same(exact: nn.Module, norms: dict[str, str], example: Inputs, before: list[Tensor]) -> bool:
    return same_outputs(folded(exact, norms), example, before)


def same_outputs(exact: nn.Module, example: Inputs, before: list[Tensor]) -> bool:
    """True if the outputs of a float64 model are ``before``, to within rounding."""
    after = outputs_in_float64(exact, example)
    return [each.shape for each in after] == [each.shape for each in before] and all(
        (one - other).abs().max() <= TOLERANCE * other.abs().max() for one, other in zip(after, before, strict=True)
    )


def outputs_in_float64(model: nn.Module, example: Inputs) -> list[Tensor]:
    """The floating-point outputs of a float64 model, in evaluation mode."""
    with evaluating(model):
        exact = map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, example)
        outputs = tensors(forward(model, exact))
    return [tensor for tensor in outputs if tensor.is_floating_point() and tensor.numel()]
