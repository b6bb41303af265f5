"""Layers used twice, several inputs and outputs, attention, and operations that move channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.parts import conv, head, member


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
