"""Image networks as they are built: residual, depthwise, concatenating, gated, with skips from end to end."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.models.lenet import lenet
from pfray.models.mobilenet import mobilenet_v1
from pfray.models.resnet import CifarResNet, resnet20
from tests.zoo.parts import Concat, Residual, conv, head, member


@member((1, 3, 16, 16))
class Plain(nn.Module):
    """Convolutions with and without batch norm, dropout, functional operations, and a flatten of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2, self.bn2 = nn.Conv2d(6, 13, 3, padding=1, bias=False), nn.BatchNorm2d(13)
        self.act, self.dropout = nn.PReLU(13), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(13 * 16, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.gelu(self.conv1(x)), 2)
        x = F.max_pool2d(self.act(self.bn2(self.conv2(x))), 2)
        x = self.fc1(self.dropout(x.flatten(1)))
        return self.fc2(F.dropout(x * torch.sigmoid(x), 0.5, self.training)).softmax(1)


@member((1, 3, 32, 32))
def lenet_5() -> nn.Module:
    return lenet()


@member((1, 3, 16, 16))
def resnet_20() -> nn.Module:
    return resnet20()


@member((1, 3, 16, 16))
def resnet_8() -> nn.Module:
    return CifarResNet(8)


@member((1, 3, 32, 32))
def mobilenet() -> nn.Module:
    return mobilenet_v1(width=0.25)


@member((1, 3, 12, 12))
def projection_resnet() -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        body = nn.Sequential(
            conv(inputs, outputs, 3, stride), nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        )
        projected = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        return Residual(body, projected if stride > 1 else None)

    return nn.Sequential(conv(3, 8), block(8, 8, 1), block(8, 12, 2), block(12, 12, 1), head(12))


@member((1, 3, 12, 12))
def resnext() -> nn.Module:
    def block(channels: int, inner: int, groups: int) -> nn.Module:
        return Residual(
            nn.Sequential(conv(channels, inner, 1), conv(inner, inner, 3, 1, groups), conv(inner, channels, 1))
        )

    return nn.Sequential(conv(3, 8), block(8, 16, 4), block(8, 12, 2), head(8))


@member((1, 3, 12, 12))
def inverted_residual() -> nn.Module:
    """MobileNet-v2 blocks, and a depthwise convolution with two channels for each input channel."""

    def block(channels: int, inner: int) -> nn.Module:
        return Residual(
            nn.Sequential(conv(channels, inner, 1), conv(inner, inner, 3, 1, inner), nn.Conv2d(inner, channels, 1))
        )

    return nn.Sequential(conv(3, 6), block(6, 18), conv(6, 12, 3, 1, 6), block(12, 24), head(12))


@member((1, 3, 12, 12))
def inception() -> nn.Module:
    def block(inputs: int) -> nn.Module:
        pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inputs, 3, 1))
        return Concat(
            [conv(inputs, 4, 1), nn.Sequential(conv(inputs, 5, 1), conv(5, 6)),
             nn.Sequential(conv(inputs, 3, 1), conv(3, 4, 5)), pooled]
        )  # fmt: skip

    return nn.Sequential(conv(3, 8, 3, 2), block(8), block(17), head(17))


@member((1, 3, 12, 12))
def densenet() -> nn.Module:
    def layer(inputs: int, growth: int) -> nn.Module:
        norm = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        return Concat([nn.Identity(), nn.Sequential(norm, conv(inputs, 8, 1), nn.Conv2d(8, growth, 3, 1, 1))])

    transition = nn.Sequential(nn.BatchNorm2d(18), nn.ReLU(), nn.Conv2d(18, 9, 1), nn.AvgPool2d(2))
    return nn.Sequential(conv(3, 6), *(layer(6 + 4 * i, 4) for i in range(3)), transition, layer(9, 4), head(13))


@member((1, 3, 12, 12))
class SqueezeExcite(nn.Module):
    """One gate made of linear layers, one of 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = conv(3, 8), conv(8, 10), head(10)
        self.down1, self.up1 = nn.Linear(8, 4), nn.Linear(4, 8)
        self.down2, self.up2 = nn.Conv2d(10, 4, 1), nn.Conv2d(4, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        gate = self.up1(F.relu(self.down1(F.adaptive_avg_pool2d(x, 1).flatten(1))))
        x = self.conv2(x * torch.sigmoid(gate)[:, :, None, None])
        gate = self.up2(F.relu(self.down2(x.mean((2, 3), keepdim=True))))
        return self.head(x * F.hardsigmoid(gate))


@member((1, 3, 12, 12))
class SpatialAttention(nn.Module):
    """CBAM's second half: a map made of the mean and the maximum over the channels scales all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = conv(3, 8), conv(8, 6), head(6)
        self.score = nn.Conv2d(6, 1, 1)
        self.mixed = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x * torch.sigmoid(self.mixed(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))
        x = self.conv2(x)
        return self.head(x * torch.sigmoid(self.score(x)))


@member((1, 3, 16, 16))
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.mid = conv(3, 6), conv(6, 8), conv(8, 10)
        self.up2, self.up1 = nn.ConvTranspose2d(10, 7, 2, 2), nn.ConvTranspose2d(8, 5, 2, 2)
        self.dec2, self.dec1, self.out = conv(15, 8), conv(11, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.enc1(x)
        second = self.enc2(F.max_pool2d(first, 2))
        x = self.up2(self.mid(F.max_pool2d(second, 2)))
        x = self.up1(self.dec2(torch.cat([x, second], 1)))
        return self.out(self.dec1(torch.cat([first, x], 1)))


@member((1, 3, 16, 16))
class FeaturePyramid(nn.Module):
    """Two scales, added after an upsampling, and one head with shared weights on both; a dictionary comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.low = conv(3, 8, 3, 2), conv(8, 12, 3, 2)
        self.side1, self.side2 = nn.Conv2d(8, 6, 1), nn.Conv2d(12, 6, 1)
        self.head = nn.Sequential(conv(6, 7), nn.Conv2d(7, 4, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        coarse = self.side2(self.low(fine))
        fine = self.side1(fine) + F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return {"fine": self.head(fine), "coarse": self.head(coarse)}
