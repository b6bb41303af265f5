"""Small models of every wiring that a channel graph meets, all with weights and statistics that are not trivial.

``ZOO`` maps a name to a function that gives (model in evaluation mode, example inputs).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.models.lenet import lenet
from pfray.models.mobilenet import mobilenet_v1
from pfray.models.resnet import resnet20

Example = tuple[Tensor, ...]
ZOO: dict[str, Callable[[], tuple[nn.Module, Example]]] = {}


def member(*shapes: tuple[int, ...]) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Put a model that takes inputs of these shapes into the zoo, under its function's or class's name."""

    def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def build() -> tuple[nn.Module, Example]:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = randomize(make()).eval()
                return model, tuple(torch.randn(shape) for shape in shapes)

        ZOO[make.__name__] = build
        return make

    return register


def randomize(model: nn.Module) -> nn.Module:
    """Statistics, scales and biases as after a training: none of them 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
    return model


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    own = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(own, nn.BatchNorm2d(outputs), nn.ReLU())


def head(channels: int, outputs: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


class Residual(nn.Module):
    """``act(body(x) + shortcut(x))``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Concat(nn.ModuleList):
    """All branches of one input, side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)


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


@member((1, 3, 12, 12))
class SharedConvolution(nn.Module):
    """One convolution is used three times in a row, another one between different layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = conv(3, 8), nn.Conv2d(8, 8, 3, padding=1), head(8)
        self.inner = nn.ModuleList([conv(8, 6, 1), conv(8, 6, 1)])
        self.shared, self.outer = conv(6, 5), nn.ModuleList([nn.Conv2d(5, 8, 1), nn.Conv2d(5, 8, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = F.relu(self.again(x))
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(self.shared(inner(x)))
        return self.head(x)


@member((1, 3, 12, 12), (1, 2, 12, 12))
class TwoInputs(nn.Module):
    """An image and a map: the map itself is concatenated to features, then both are flattened and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.map = conv(3, 6), conv(2, 4, 3, 2)
        self.joined = conv(8, 5, 3, 2)
        self.fc1, self.fc2 = nn.Linear(4 * 9 + 5 * 9, 12), nn.Linear(12, 3)

    def forward(self, image: Tensor, map: Tensor) -> Tensor:
        x = F.max_pool2d(self.joined(torch.cat([map, self.image(image)], 1)), 2).flatten(1)
        y = F.max_pool2d(self.map(map), 2).flatten(1)
        return self.fc2(F.relu(self.fc1(torch.cat([x, y], 1))))


@member((1, 3, 12, 12))
class SeveralOutputs(nn.Module):
    """Features that are also an output, a list in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.left, self.right = conv(3, 8), conv(8, 6), head(6), head(6, 2)
        self.hidden = conv(8, 4)
        self.last = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.stem(x)
        features = self.body(x) + self.last(self.hidden(x))
        return features, [self.left(features), self.right(features)]


class Attention(nn.Module):
    """Heads by hand: one linear layer for queries, keys and values, then a reshape."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, channels = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, channels))


class MultiheadAttention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class VisionTransformer(nn.Module):
    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, 8, 4, 4), nn.Parameter(0.5 * torch.randn(1, 9, 8))
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(8), attention(8, 2), nn.LayerNorm(8)
        self.mlp1, self.mlp2, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp2(F.gelu(self.mlp1(self.norm2(x))))
        return self.head(x.mean(1))


@member((1, 3, 12, 12))
def vision_transformer() -> nn.Module:
    return VisionTransformer(Attention)


@member((1, 3, 12, 12))
def vision_transformer_of_torch() -> nn.Module:
    return VisionTransformer(MultiheadAttention)


@member((1, 2, 30))
def conv_1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 5), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 8, 5, 2), nn.ReLU(), nn.MaxPool1d(2),
        nn.Flatten(), nn.Linear(8 * 5, 10), nn.ReLU(), nn.Linear(10, 3),
    )  # fmt: skip


@member((1, 3, 12, 12))
def normalized() -> nn.Module:
    """Group norm, layer norm and instance norm; the last of them keeps channels apart."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1),
        nn.LayerNorm([6, 12, 12]), nn.ReLU(), nn.Conv2d(6, 7, 3, padding=1), nn.InstanceNorm2d(7, affine=True),
        nn.ReLU(), head(7),
    )  # fmt: skip


@member((1, 3, 8, 12))
class Recurrent(nn.Module):
    """Columns of the image as steps of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 6), conv(6, 5, 3, (8, 1))  # type: ignore[arg-type]
        self.lstm, self.fc = nn.LSTM(5, 9, batch_first=True), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x)).squeeze(2).transpose(1, 2)
        return self.fc(self.lstm(x)[0][:, -1])


@member((1, 6))
def single_linear() -> nn.Module:
    return nn.Linear(6, 4)


@member((1, 3, 8, 8))
def one_channel() -> nn.Module:
    return nn.Sequential(conv(3, 1), conv(1, 4), head(4))


@member((1, 3, 8, 8))
class ChannelShuffle(nn.Module):
    """ShuffleNet-v2 units: half of the channels pass by, then both halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), nn.Sequential(conv(8, 6, 1), head(6))
        self.branches = nn.ModuleList(nn.Sequential(conv(4, 6, 1), conv(6, 6, 3, 1, 6), conv(6, 4, 1)) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            kept, changed = x.chunk(2, 1)
            x = torch.cat([kept, branch(changed)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x)


@member((1, 3, 8, 8))
class Split(nn.Module):
    """Channels cut by position and by size, padded, and a sub-pixel upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 8), conv(8, 12), conv(12, 8)
        self.left, self.right = conv(3, 6), conv(5, 6)
        self.up, self.out = nn.Conv2d(6, 8, 1), nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.conv3(self.conv2(x) + F.pad(x, (0, 0, 0, 0, 1, 3)))
        a, b = x.split([3, 5], 1)
        return self.out(F.pixel_shuffle(self.up(self.left(a) + self.right(b)), 2))


@member((1, 3, 8, 8))
class Gate(nn.Module):
    """One half of the channels scales the other half, so that they go in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 12, 3), conv(6, 5, 1), head(5)

    def forward(self, x: Tensor) -> Tensor:
        values, gates = self.conv1(x).chunk(2, 1)
        return self.head(self.conv2(values * torch.sigmoid(gates)))


@member((1, 3, 12, 12))
class FixedShape(nn.Module):
    """Its forward knows the number of channels, and scales them by a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 6), conv(6, 5), conv(5, 4, 3, 2)
        self.scale, self.fc = nn.Parameter(torch.rand(5, 1, 1) + 0.5), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv3(self.conv2(self.conv1(x)) * self.scale).view(-1, 4 * 36))


@member((1, 3, 12, 12))
class Auxiliary(nn.Module):
    """A second head that runs in training only, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = conv(3, 6), conv(6, 8), head(8)
        self.auxiliary, self.unused = head(6), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.conv1(x)
        logits = self.head(self.conv2(x))
        return (logits, self.auxiliary(x)) if self.training else logits


@member((1, 3, 8, 8))
class Branching(nn.Module):
    """Which layers run depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.head = conv(3, 6), conv(6, 6), conv(6, 6), head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.head(self.conv2(x) if x.mean() > 0.5 else self.conv3(x))


@member((1, 3, 8, 8))
class NoTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.head = conv(3, 6), head(6)

    def forward(self, x: Tensor) -> str:
        return str(self.head(self.conv1(x)).shape)


@member((1, 4, 8, 8))
def wrong_input() -> nn.Module:
    return nn.Sequential(conv(3, 6), head(6))
