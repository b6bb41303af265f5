"""VGG-16 (Simonyan and Zisserman 2015, table 1: D) for 224x224 images, with the width multiplier.

Without batch norms and with three linear layers, as published. Names and shapes are those of torchvision's weights:
``features.{0..28}, classifier.{0,3,6}``. The plain name ``vgg16`` is the network for 32x32 images in vgg.py.
"""

from __future__ import annotations

from torch import Tensor, nn

from pfray.nn.width_multiplier import check_width, scaled

# Output channels at width 1 of the convolutions of each stage; a pooling ends every stage.
STAGES = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
HIDDEN = 4096
# Height and width that the linear layers read; those of 224x224 images after five poolings.
SIDE = 7


class ImageNetVGG(nn.Module):
    """``(N, in_channels, H, W)`` images to ``(N, num_outputs)`` logits; other sizes are pooled to that of 224x224."""

    def __init__(self, num_outputs: int, in_channels: int, width: float) -> None:
        super().__init__()
        check_width(width)
        layers: list[nn.Module] = []
        channels, hidden = in_channels, scaled(HIDDEN, width)
        for stage in STAGES:
            for base in stage:
                out = scaled(base, width)
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(SIDE)
        self.classifier = nn.Sequential(
            nn.Linear(channels * SIDE * SIDE, hidden), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(hidden, num_outputs),
        )  # fmt: skip
        for parameter in self.parameters():
            if parameter.dim() == 4:
                nn.init.kaiming_normal_(parameter, mode="fan_out")
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, 0, 0.01)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def vgg16_imagenet(num_outputs: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    return ImageNetVGG(num_outputs, in_channels, width)
