"""MobileNet-v1 (Howard et al. 2017, table 1) with the width multiplier, for 224x224 and 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn

from pfray.nn.width_multiplier import check_width, scaled

# (output channels at width 1, stride) of the 13 depthwise-separable blocks.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class MobileNetV1(nn.Module):
    """``(N, in_channels, H, W)`` images to ``(N, num_outputs)`` logits.

    Height and width are divided by 32, so both 224x224 and 32x32 fit. The pooling keeps its axes until the flatten: a
    ``mean((2, 3))`` would add a transpose to the exported file.
    """

    def __init__(self, num_outputs: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(32, width)
        layers: list[nn.Module] = [_conv_bn(in_channels, channels, 3, stride=2)]
        for base, stride in BLOCKS:
            out = scaled(base, width)
            layers += [_conv_bn(channels, channels, 3, stride, groups=channels), _conv_bn(channels, out, 1)]
            channels = out
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


def _conv_bn(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def mobilenet_v1(num_outputs: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """Raises ValueError unless ``0 < width <= 4``."""
    check_width(width)
    return MobileNetV1(num_outputs, in_channels, width)
