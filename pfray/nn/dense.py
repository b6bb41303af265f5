"""Dense layers, the batch norms behind them, and constants added to their outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pfray.nn.inputs import Inputs, call
from pfray.nn.modes import evaluation_mode

Dense = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
# Wider rows of ``weight.flatten(1)`` would make matrices of gigabytes.
MAX_WIDTH = 8192


def is_dense(module: nn.Module) -> bool:
    """True for a layer that is one matrix product, every output reading every input channel, and small enough to be
    solved for: rows of at most ``MAX_WIDTH``."""
    dense = isinstance(module, Dense) and getattr(module, "groups", 1) == 1
    return dense and module.get_parameter("weight")[0].numel() <= MAX_WIDTH


def can_shift(model: nn.Module, name: str, norms: Mapping[str, str]) -> bool:
    """True if ``shift_output`` has a bias or a batch norm to change."""
    return model.get_submodule(name).bias is not None or name in norms


def behind_norm(norm: nn.Module) -> list[nn.Module]:
    """Modules that a norm runs behind its normalization, as timm's norms hold their activation."""
    return [child for child in norm.children() if not isinstance(child, nn.Identity)]


def shift_output(model: nn.Module, name: str, norms: Mapping[str, str], shift: Tensor) -> None:
    """Add a constant ``(O,)`` to the layer's outputs, in its bias or else in the batch norm behind it."""
    layer: Any = model.get_submodule(name)
    if layer.bias is not None:
        layer.bias.data += shift.to(layer.bias)
    else:
        norm: Any = model.get_submodule(norms[name])
        norm.running_mean -= shift.to(norm.running_mean)


@torch.no_grad()
def norms_behind(model: nn.Module, example: Inputs, wanted: Callable[[nn.Module], bool] = is_dense) -> dict[str, str]:
    """The batch norm that reads a layer's output directly, channel by channel, by the layer's name.

    Layers and batch norms that run more than once, and layers that several batch norms read, are left out.
    wanted: selects the layers.
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
        # Batch norm normalizes the second axis; the features of a linear layer are the last axis of (N, T, F).
        if not isinstance(layer, nn.Linear) or output.dim() == 2:
            makers[id(output)] = name, output._version

    def read(name: str, inputs: tuple[Tensor, ...]) -> None:
        runs[name] += 1
        layer, version = makers.get(id(inputs[0]), ("", 0)) if inputs else ("", 0)
        # The version shows whether an in-place operation came between.
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
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: norm for layer, norm in pairs if runs[layer] == runs[norm] == reads[layer] == 1}
