"""Cross-layer equalization: the ranges of two layers in a row made equal, channel by channel, the function kept.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1.

Notation: y = f(W1 x + b1) and W2 y, with a positively homogeneous f (f(s x) = s f(x) for s > 0, as a ReLU) whose output
goes to the second layer only. Then channel i may be divided by any s_i > 0 in W1 and b1, and multiplied by it in W2.
With the ranges r1_i of the rows of W1 and r2_i of the columns of W2, largest magnitudes,

    s_i = sqrt(r1_i r2_i) / r2_i                                                                     (9 to 12)

makes both sqrt(r1_i r2_i). A layer may be in two pairs, as a depthwise convolution is; the pairs take turns until
nothing changes.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pfray.nn.dense import Dense
from pfray.nn.fx import traced_nodes
from pfray.nn.inputs import Inputs
from pfray.nn.layers import sharing, weight_layers
from pfray.quantization.bn_folding import outputs_in_float64, same_outputs

# Positively homogeneous, value by value or over values of one channel.
HOMOGENEOUS = {
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.LeakyReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, F.relu, F.relu_, F.leaky_relu, torch.relu, torch.relu_, "relu", "relu_", F.max_pool2d,
    F.avg_pool2d, F.adaptive_avg_pool2d,
}  # fmt: skip
# The pairs take turns so often at most, or until no scale differs from 1 by more than the tolerance.
ROUNDS, TOLERANCE = 100, 1e-3

Scales = dict[tuple[str, str], Tensor]


def equalizing_scales(model: nn.Module, example: Inputs) -> Scales:
    """s ``(C,)``, float64, of each pair of layers, (first, second), that can be equalized. The model stays as it is.

    A pair is proven by the outputs for ``example`` in float64. Empty if torch.fx cannot trace the model.
    """
    exact = copy.deepcopy(model).double()
    try:
        pairs = _pairs(model, example)
        before = outputs_in_float64(exact, example)
    except Exception:
        return {}
    proven = [pair for pair in pairs if before and _is_equivalent(exact, pair, example, before)]
    scales: Scales = {pair: torch.ones_like(ranges(exact, pair)[0]) for pair in proven}
    for _ in range(ROUNDS):
        moved = 0.0
        for pair in proven:
            own = _scale(exact, pair)
            equalize(exact, {pair: own})
            scales[pair] = scales[pair] * own
            moved = max(moved, float((own - 1).abs().max()))
        if moved <= TOLERANCE:
            break
    return scales


@torch.no_grad()
def equalize(model: nn.Module, scales: Mapping[tuple[str, str], Tensor]) -> None:
    """Divide the first layer's outputs by s and multiply the second's inputs by it, in place.

    A layer then trains as it did before: a step on W is a step of s^2 times its size on s W, so that its gradient is
    multiplied by s^2, as a folded layer's is (``bn_folding.py``).
    """
    for (first, second), scale in scales.items():
        one: Any = model.get_submodule(first)
        _multiply(one.weight, (1 / scale).view(-1, *[1] * (one.weight.dim() - 1)))
        if one.bias is not None:
            _multiply(one.bias, 1 / scale)
        two: Any = model.get_submodule(second)
        _multiply(two.weight, _by_input(two, scale))


@torch.no_grad()
def ranges(model: nn.Module, pair: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """(r1, r2) ``(C,)`` of a pair: each channel's largest magnitude where it is produced, and where it is read."""
    one: Any = model.get_submodule(pair[0])
    two: Any = model.get_submodule(pair[1])
    magnitudes = two.weight.abs().flatten(2) if two.weight.dim() > 2 else two.weight.abs()[..., None]
    groups = getattr(two, "groups", 1)
    read = magnitudes.view(groups, -1, *magnitudes.shape[1:]).amax((1, 3)).flatten()
    return one.weight.abs().flatten(1).amax(1), read.view(len(one.weight), -1).amax(1)


def _scale(model: nn.Module, pair: tuple[str, str]) -> Tensor:
    """s of a pair; 1 for a channel that is nothing on one side."""
    made, read = ranges(model, pair)
    return torch.where((made > 0) & (read > 0), (made / read).sqrt(), 1.0)


def _by_input(layer: Any, scale: Tensor) -> Tensor:
    """The scale of each input channel, as factors of the layer's weight. A flattened channel is several inputs."""
    groups = getattr(layer, "groups", 1)
    inputs = layer.weight.shape[1] * groups
    scale = scale.repeat_interleave(inputs // len(scale)).view(groups, 1, -1)
    factors = scale.expand(groups, len(layer.weight) // groups, -1).flatten(0, 1)
    return factors.reshape(*factors.shape, *[1] * (layer.weight.dim() - 2))


def _multiply(parameter: nn.Parameter, factors: Tensor) -> None:
    parameter.copy_(parameter.double() * factors)
    if parameter.requires_grad:
        squared = factors.square().to(parameter)
        parameter.register_hook(lambda gradient: gradient * squared)


def _pairs(model: nn.Module, example: Inputs) -> list[tuple[str, str]]:
    """Layers in a row with a homogeneous function between; each runs once and has a weight of its own."""
    names = [n for n, layer in weight_layers(model).items() if isinstance(layer, Dense) and len(sharing(model, n)) == 1]
    nodes = traced_nodes(model, set(names), example)
    runs = Counter(node.target for node in nodes if node.op == "call_module")
    single = {name for name in names if runs[name] == 1}
    found = []
    for node in nodes:
        if node.op == "call_module" and node.target in single and (second := _reader(node, model, single)):
            found.append((str(node.target), second))
    return found


def _reader(node: fx.Node, model: nn.Module, layers: set[str]) -> str | None:
    """The layer that alone reads the node's output through homogeneous functions; None without one."""
    channels = model.get_submodule(str(node.target)).get_parameter("weight").shape[0]
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op == "call_module" and node.target in layers:
            layer: Any = model.get_submodule(str(node.target))
            return str(node.target) if layer.weight.shape[1] * getattr(layer, "groups", 1) % channels == 0 else None
        kind = type(model.get_submodule(str(node.target))) if node.op == "call_module" else node.target
        if kind not in HOMOGENEOUS | {nn.Flatten, torch.flatten, "flatten"}:
            return None
    return None


def _is_equivalent(exact: nn.Module, pair: tuple[str, str], example: Inputs, before: list[Tensor]) -> bool:
    """True if scales of every size leave the outputs of the float64 model unchanged."""
    changed = copy.deepcopy(exact)
    count = changed.get_submodule(pair[0]).get_parameter("weight").shape[0]
    equalize(changed, {pair: torch.linspace(0.5, 2, count).double()})
    return same_outputs(changed, example, before)
