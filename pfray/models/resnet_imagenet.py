"""ResNet-18, ResNet-34 and ResNet-50 (He et al. 2016, table 1) for 224x224 images, with the width multiplier.

Names and shapes are those of torchvision's published weights: ``layer{1..4}.{i}.{conv1,bn1,...,downsample}, fc``. As
there, the bottleneck has its stride in the 3x3 convolution (ResNet v1.5). The plain names are networks for 32x32.
"""

from __future__ import annotations

from torch import Tensor, nn

from pfray.nn.width_multiplier import check_width, scaled

# (channels of the 3x3 convolutions at width 1, stride of the first block) of the four stages, and blocks of each.
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
# A bottleneck's outputs, as a multiple of its 3x3 convolution's channels.
EXPANSION = 4


class Basic(nn.Module):
    """Two 3x3 convolutions: ``(N, in_channels, H, W)`` to ``(N, channels, H / stride, W / stride)``."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _downsample(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1: ``(N, in_channels, H, W)`` to ``(N, 4 channels, H / stride, W / stride)``."""

    expansion = EXPANSION

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.relu(self.bn3(self.conv3(out)) + (x if self.downsample is None else self.downsample(x)))


def _downsample(in_channels: int, outputs: int, stride: int) -> nn.Module | None:
    """He et al.'s option B: a 1x1 convolution where the shape changes; None elsewhere."""
    if stride == 1 and in_channels == outputs:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ImageNetResNet(nn.Module):
    """``(N, in_channels, H, W)`` images to ``(N, num_outputs)`` logits; height and width are divided by 32."""

    def __init__(
        self, block: type[Basic | Bottleneck], depth: int, num_outputs: int, in_channels: int, width: float
    ) -> None:
        super().__init__()
        check_width(width)
        channels = scaled(64, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages = []
        for (base, stride), count in zip(STAGES, BLOCKS[depth], strict=True):
            stage = []
            for index in range(count):
                stage.append(block(channels, scaled(base, width), 1 if index else stride))
                channels = block.expansion * scaled(base, width)
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def resnet18_imagenet(num_outputs: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    return ImageNetResNet(Basic, 18, num_outputs, in_channels, width)


def resnet34_imagenet(num_outputs: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    return ImageNetResNet(Basic, 34, num_outputs, in_channels, width)


def resnet50_imagenet(num_outputs: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    return ImageNetResNet(Bottleneck, 50, num_outputs, in_channels, width)
