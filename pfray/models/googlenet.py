"""GoogLeNet, also called Inception-v1 (Szegedy et al. 2015, table 1), with batch norms, for 224x224 images.

Names and shapes are those of torchvision's published weights: ``conv{1,2,3}, inception{3a..5b}.branch{1..4}, fc``. As
in those, the branch that the paper has as 5x5 is 3x3. The two auxiliary heads of the paper, which only training uses,
are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pfray.nn.width_multiplier import check_width, scaled

# Channels at width 1: of branch 1, before and after the 3x3 of branches 2 and 3, and of branch 4 (table 1, rows 3a-5b).
BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64), "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
# Normalization of the images that the published weights were trained on, and the usual one of ImageNet.
TRAINED_MEAN, TRAINED_STD = 0.5, 0.5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DROPOUT = 0.2


class Renormalize(nn.Module):
    """Images with ImageNet's usual normalization to that of the published weights."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor(MEAN).view(-1, 1, 1), torch.tensor(STD).view(-1, 1, 1)
        self.register_buffer("scale", std / TRAINED_STD, persistent=False)
        self.register_buffer("shift", (mean - TRAINED_MEAN) / TRAINED_STD, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class ConvBN(nn.Module):
    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)
        self.relu = nn.ReLU(inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """``(N, in_channels, H, W)`` to ``(N, outputs, H, W)``: four branches, concatenated."""

    def __init__(self, in_channels: int, own: int, mid2: int, out2: int, mid3: int, out3: int, pooled: int) -> None:
        super().__init__()
        self.branch1 = ConvBN(in_channels, own, 1)
        self.branch2 = nn.Sequential(ConvBN(in_channels, mid2, 1), ConvBN(mid2, out2, 3))
        self.branch3 = nn.Sequential(ConvBN(in_channels, mid3, 1), ConvBN(mid3, out3, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), ConvBN(in_channels, pooled, 1))
        self.outputs = own + out2 + out3 + pooled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """``(N, in_channels, H, W)`` images to ``(N, num_outputs)`` logits; height and width are divided by 32.

    Images of three channels have ImageNet's usual normalization and first get that of the published weights, as with
    torchvision's ``transform_input``.
    """

    # Prefixes of names in a weights file that the network has no use for (``pfray/nn/weights.py``).
    unused_weights = ("aux1.", "aux2.")

    def __init__(self, num_outputs: int, in_channels: int, width: float) -> None:
        super().__init__()
        check_width(width)
        self.transform_input = Renormalize() if in_channels == len(MEAN) else nn.Identity()
        first, third = scaled(64, width), scaled(192, width)
        self.conv1 = ConvBN(in_channels, first, 7, 2)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = ConvBN(first, first, 1)
        self.conv3 = ConvBN(first, third, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels = third
        for name, counts in BLOCKS.items():
            block = Inception(channels, *(scaled(count, width) for count in counts))
            self.add_module(f"inception{name}", block)
            channels = block.outputs
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(DROPOUT)
        self.fc = nn.Linear(channels, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool1(self.conv1(self.transform_input(x)))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.maxpool3(self._stage("3", x))
        x = self._stage("5", self.maxpool4(self._stage("4", x)))
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))

    def _stage(self, number: str, x: Tensor) -> Tensor:
        for name in BLOCKS:
            if name.startswith(number):
                x = self.get_submodule(f"inception{name}")(x)
        return x


def googlenet(num_outputs: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """Raises ValueError unless ``0 < width <= 4``."""
    return GoogLeNet(num_outputs, in_channels, width)
