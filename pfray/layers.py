"""The layers of a model that have a weight worth compressing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WeightLayer = nn.modules.conv._ConvNd | nn.Linear


def weight_layers(model: nn.Module) -> dict[str, WeightLayer]:
    """All convolutions and linear layers, by name; of layers that share one weight, the first."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, WeightLayer)}
    shared = {id(module.weight): name for name, module in reversed(layers.items())}
    return {name: module for name, module in layers.items() if shared[id(module.weight)] == name}


def is_depthwise(module: nn.Module) -> bool:
    """Whether each output channel of a convolution sees one input channel only."""
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.in_channels > 1


@torch.no_grad()
def run_order(model: nn.Module, example: Tensor) -> list[str]:
    """The names of ``weight_layers`` in the order in which they run; without those that do not."""
    ran: dict[str, None] = {}
    handles = [
        layer.register_forward_hook(lambda *_, name=name: ran.setdefault(name))
        for name, layer in weight_layers(model).items()
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        model(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return list(ran)
