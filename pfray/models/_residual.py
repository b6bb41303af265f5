"""The residual block of He et al. 2016 with two 3x3 convolutions, and stages of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

# From (input channels, output channels, stride) to the module around the two convolutions.
Shortcut = Callable[[int, int, int], nn.Module]


class BasicBlock(nn.Module):
    """``(N, in_channels, H, W)`` to ``(N, channels, H / stride, W / stride)``."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.shortcut(x))


def residual_stage(in_channels: int, channels: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    """``blocks`` blocks of ``channels`` outputs; the first has the ``stride``."""
    first = BasicBlock(in_channels, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, shortcut) for _ in range(blocks - 1)))
