"""Streams with norms across channels, norms with an activation inside, parameters of their own, and equal parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.parts import conv, head, member


class BatchNormAct(nn.BatchNorm2d):
    """A batch norm with a dropout and an activation as child modules, as timm has it."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class GroupNormAct(nn.GroupNorm):
    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class LayerNorm2d(nn.LayerNorm):
    """A layer norm over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@member((1, 3, 12, 12))
def norms_with_activation() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), BatchNormAct(8, nn.ReLU(inplace=True)), nn.Conv2d(8, 8, 3, groups=8),
        BatchNormAct(8, nn.Hardswish()), nn.Conv2d(8, 12, 1), GroupNormAct(3, 12), nn.Conv2d(12, 6, 1, bias=False),
        BatchNormAct(6, nn.Identity()), head(6),
    )  # fmt: skip


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.LayerNorm(channels)
        self.fc1, self.fc2 = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.gamma = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.fc2(F.gelu(self.fc1(y)))).permute(0, 3, 1, 2)


@member((1, 3, 12, 12))
def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 2, 2), LayerNorm2d(6), ConvNeXtBlock(6), ConvNeXtBlock(6), LayerNorm2d(6),
        nn.Conv2d(6, 8, 2, 2), ConvNeXtBlock(8), head(8),
    )  # fmt: skip


@member((1, 3, 12, 12))
class Tokens(nn.Module):
    """Patches with a class token and position parameters, one of them two-dimensional, and layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.plane = nn.Conv2d(3, 8, 4, 4), nn.Parameter(0.5 * torch.randn(1, 8, 3, 3))
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(0.5 * torch.randn(1, 10, 8))
        self.norm1, self.mlp1, self.mlp2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm2, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.patch(x) + self.plane).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.mlp2(F.gelu(self.mlp1(self.norm1(x))))
        x = x + x.mean(1, keepdim=True)
        return self.head(self.norm2(x)[:, 0])


@member((1, 3, 12, 12))
class C2f(nn.Module):
    """YOLO's block: one half of the channels passes a chain of layers, and all of its steps are concatenated."""

    def __init__(self, steps: int = 2) -> None:
        super().__init__()
        self.stem, self.first = conv(3, 6), conv(6, 8, 1)
        self.chain = nn.ModuleList(nn.Sequential(conv(4, 3), conv(3, 4)) for _ in range(steps))
        self.last, self.head = conv(4 * (2 + steps), 7, 1), head(7)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(self.stem(x)).chunk(2, 1))
        for step in self.chain:
            parts.append(parts[-1] + step(parts[-1]))
        return self.head(self.last(torch.cat(parts, 1)))
