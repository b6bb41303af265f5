"""Batch norm folded into the layer before it: a fixed scale and shift of each channel are the layer's own.

Notation: the layer gives y = W x + c, and the batch norm, with its running statistics, g (y - m) / sqrt(v + e) + h.
With t = g / sqrt(v + e) that is the layer W' = t W, c' = t (c - m) + h, output channel by output channel.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pfray.measure import evaluating
from pfray.rows import Dense, norms_behind
from pfray.tracing import tensors

# In float64, so that what changes the model is told from rounding.
TOLERANCE = 1e-6


def foldable_norms(model: nn.Module, example: Tensor) -> dict[str, str]:
    """The batch norms that can be folded into a layer, by the layer's name.

    Those that a layer's output goes to directly and nowhere else, and of which both run once. Proven by the outputs for
    ``example``; the model is left as it is. Where they cannot be proven, none.
    """
    weights = [id(m.weight) for m in model.modules() if isinstance(m, Dense)]
    pairs = {
        layer: norm
        for layer, norm in norms_behind(model, example, lambda module: isinstance(module, Dense)).items()
        if weights.count(id(model.get_submodule(layer).weight)) == 1
    }
    exact = copy.deepcopy(model).double()
    try:
        before = _outputs(exact, example)
    except Exception:
        return {}  # it cannot run in float64, so nothing can be proven
    if _same(exact, pairs, example, before):
        return pairs
    # Where another module reads what is between layer and norm, the outputs tell; each is then tried by itself.
    return {layer: norm for layer, norm in pairs.items() if _same(exact, {layer: norm}, example, before)}


@torch.no_grad()
def fold(model: nn.Module, norms: dict[str, str]) -> None:
    """Fold batch norms, by layer name, in place; an identity takes the place of each."""
    for name, norm_name in norms.items():
        layer: Any = model.get_submodule(name)
        norm: Any = model.get_submodule(norm_name)
        mean, variance = norm.running_mean.double(), norm.running_var.double()
        scale = (variance + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        bias = -mean if layer.bias is None else layer.bias.double() - mean
        shift = bias * scale + (0 if norm.bias is None else norm.bias.double())
        shape = (-1, *[1] * (layer.weight.dim() - 1))
        layer.weight.copy_(layer.weight.double() * scale.view(shape))
        layer.bias = nn.Parameter(shift.to(layer.weight))
        model.set_submodule(norm_name, nn.Identity())


def folded(model: nn.Module, norms: dict[str, str]) -> nn.Module:
    """A copy of ``model`` with batch norms folded."""
    own = copy.deepcopy(model)
    fold(own, norms)
    return own


def _same(exact: nn.Module, norms: dict[str, str], example: Tensor, before: list[Tensor]) -> bool:
    after = _outputs(folded(exact, norms), example)
    return all(
        (one - other).abs().max() <= TOLERANCE * other.abs().max() for one, other in zip(after, before, strict=True)
    )


def _outputs(model: nn.Module, example: Tensor) -> list[Tensor]:
    with evaluating(model):
        return tensors(model(example.double()))
