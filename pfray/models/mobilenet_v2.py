"""MobileNet-v2 (Sandler et al. 2018, table 2) with the width multiplier, for 224x224 images.

Names and shapes are those of torchvision's published weights: ``features.{0..18}, classifier.1``.
"""

from __future__ import annotations

from torch import Tensor, nn

from pfray.nn.width_multiplier import check_width, scaled

# (expansion, output channels at width 1, blocks, stride of the first block) of each stage.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
DROPOUT = 0.2


class InvertedResidual(nn.Module):
    """``(N, in_channels, H, W)`` to ``(N, channels, H / stride, W / stride)``, wide inside and linear at its end."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        expand = [_conv_bn(in_channels, hidden, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *expand, _conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.adds = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """``(N, in_channels, H, W)`` images to ``(N, num_outputs)`` logits; height and width are divided by 32."""

    def __init__(self, num_outputs: int, in_channels: int, width: float) -> None:
        super().__init__()
        check_width(width)
        channels, last = _scaled(32, width), _scaled(1280, max(1.0, width))
        layers: list[nn.Module] = [_conv_bn(in_channels, channels, 3, stride=2)]
        for expansion, base, blocks, stride in STAGES:
            for index in range(blocks):
                out = _scaled(base, width)
                layers.append(InvertedResidual(channels, out, 1 if index else stride, expansion))
                channels = out
        self.features = nn.Sequential(*layers, _conv_bn(channels, last, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(last, num_outputs))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


def _scaled(channels: int, width: float) -> int:
    """``scaled``, but rounded down by 10 % at most, as the published network is."""
    rounded = scaled(channels, width)
    return rounded if rounded >= 0.9 * channels * width else rounded + 8


def _conv_bn(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU6(inplace=True))


def mobilenet_v2(num_outputs: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """The last convolution has 1280 channels at any width below 1. Raises ValueError unless ``0 < width <= 4``."""
    return MobileNetV2(num_outputs, in_channels, width)
