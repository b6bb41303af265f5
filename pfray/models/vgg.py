"""VGG with batch norm for 32x32 images (Simonyan and Zisserman 2015, table 1: A, B and D), and a seven-layer student.

At 32x32 the five poolings leave one position, so a single linear layer follows instead of three.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pfray.nn.width_multiplier import check_width, scaled

# Output channels at width 1 of the convolutions of each stage; a pooling ends every stage.
STAGES = {
    7: ((64,), (128,), (256,), (256, 512), (512,)),
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
}


class VGG(nn.Module):
    """``(N, in_channels, 32, 32)`` images to ``(N, num_outputs)`` logits.

    stages: output channels of the 3x3 convolutions of each stage. Other sizes fit if they can be halved once a stage.
    """

    def __init__(self, stages: Sequence[Sequence[int]], num_outputs: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage in stages:
            for out in stage:
                conv = nn.Conv2d(channels, out, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out")
                layers += [conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


def _scaled(depth: int, width: float) -> list[list[int]]:
    check_width(width)
    return [[scaled(base, width) for base in stage] for stage in STAGES[depth]]


def vgg7(num_outputs: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    return VGG(_scaled(7, width), num_outputs, in_channels)


def vgg11(num_outputs: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    return VGG(_scaled(11, width), num_outputs, in_channels)


def vgg13(num_outputs: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    return VGG(_scaled(13, width), num_outputs, in_channels)


def vgg16(num_outputs: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    return VGG(_scaled(16, width), num_outputs, in_channels)
