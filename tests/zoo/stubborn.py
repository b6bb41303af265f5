"""Models of which something, or everything, has to stay as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.parts import conv, head, member


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
