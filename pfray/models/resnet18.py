"""ResNet-18 and ResNet-34 (He et al. 2016, table 1) for 32x32 images, with the width multiplier.

For images of this size the first convolution is 3x3 with stride 1, and no pooling follows it. Shortcuts into a new
stage are 1x1 convolutions (option B). Module names follow the public weights, as in resnet.py.
"""

from __future__ import annotations

from torch import Tensor, nn

from pfray.models._residual import residual_stage
from pfray.nn.width_multiplier import check_width, scaled

# (output channels at width 1, stride of the first block) of the four stages, and the blocks of each.
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def _option_b(in_channels: int, channels: int, stride: int) -> nn.Module:
    """He et al.'s option B: a 1x1 convolution where the shape changes."""
    if stride == 1 and in_channels == channels:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class StagedResNet(nn.Module):
    """``(N, in_channels, 32, 32)`` images to ``(N, num_outputs)`` logits."""

    def __init__(self, depth: int, num_outputs: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        check_width(width)
        channels = scaled(64, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        for (base, stride), blocks in zip(STAGES, BLOCKS[depth], strict=True):
            out = scaled(base, width)
            stages.append(residual_stage(channels, out, blocks, stride, _option_b))
            channels = out
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.pool(x).flatten(1))


def resnet18(num_outputs: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    return StagedResNet(18, num_outputs, in_channels, width)


def resnet34(num_outputs: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    return StagedResNet(34, num_outputs, in_channels, width)
