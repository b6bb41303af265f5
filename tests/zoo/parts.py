"""What the zoo's models are made of, and the list that they are put into."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Example = tuple[Tensor, ...]
ZOO: dict[str, Callable[[], tuple[nn.Module, Example]]] = {}


def member(*shapes: tuple[int, ...]) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Put a model that takes inputs of these shapes into the zoo, under its function's or class's name."""

    def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def build() -> tuple[nn.Module, Example]:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = randomize(make()).eval()
                return model, tuple(torch.randn(shape) for shape in shapes)

        ZOO[make.__name__] = build
        return make

    return register


def randomize(model: nn.Module) -> nn.Module:
    """Statistics, scales and biases as after a training: none of them 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
    return model


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    own = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(own, nn.BatchNorm2d(outputs), nn.ReLU())


def head(channels: int, outputs: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


class Residual(nn.Module):
    """``act(body(x) + shortcut(x))``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Concat(nn.ModuleList):
    """All branches of one input, side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)
