"""CIFAR ResNets of He et al. 2016, section 4.2: 6n + 2 layers, widths 16, 32 and 64, parameter-free shortcuts.

Module names follow the widely used public weights: ``conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear``.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pfray.models._residual import residual_stage


class OptionAShortcut(nn.Module):
    """He et al.'s option A: every second pixel, new channels zero-padded equally on both sides."""

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.pad = extra_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


def _option_a(in_channels: int, channels: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 else OptionAShortcut(channels - in_channels)


class CifarResNet(nn.Module):
    """``(N, in_channels, 32, 32)`` images to ``(N, num_outputs)`` logits."""

    def __init__(self, depth: int, num_outputs: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = residual_stage(16, 16, blocks, 1, _option_a)
        self.layer2 = residual_stage(16, 32, blocks, 2, _option_a)
        self.layer3 = residual_stage(32, 64, blocks, 2, _option_a)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


def resnet20(num_outputs: int = 10, in_channels: int = 3) -> nn.Module:
    return CifarResNet(20, num_outputs, in_channels)


def resnet32(num_outputs: int = 10, in_channels: int = 3) -> nn.Module:
    return CifarResNet(32, num_outputs, in_channels)


def resnet44(num_outputs: int = 10, in_channels: int = 3) -> nn.Module:
    return CifarResNet(44, num_outputs, in_channels)


def resnet56(num_outputs: int = 10, in_channels: int = 3) -> nn.Module:
    return CifarResNet(56, num_outputs, in_channels)


def resnet110(num_outputs: int = 10, in_channels: int = 3) -> nn.Module:
    return CifarResNet(110, num_outputs, in_channels)
