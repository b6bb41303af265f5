"""What a user brings along: a model, and a data set that is not classification."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.task import Split, Task


class Regressor(nn.Module):
    """``(N, 1, 16, 16)`` images to ``(N, 1)``: how bright the image is."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, hidden, 3, stride=2, padding=1)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 1).flatten(1))


def within_a_tenth(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets).abs() < 0.1).float().flatten()


def brightness(count: int = 300) -> Task:
    generator = torch.Generator().manual_seed(0)
    level = torch.rand(count, 1, 1, 1, generator=generator)
    inputs = (255 * level * torch.rand(count, 1, 16, 16, generator=generator)).to(torch.uint8)
    targets = inputs.float().mean((1, 2, 3)).div(255)[:, None] * 2
    third = count // 3
    splits = [Split(inputs[i : i + third], targets[i : i + third]) for i in (0, third, 2 * third)]
    return Task("brightness", *splits, num_outputs=1, loss=F.mse_loss, score=within_a_tenth)


def broken_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    raise KeyError("label")


def missing_file() -> Task:
    with open("no/such/file"):
        return brightness()


def mean_score() -> Task:
    return replace(brightness(), score=lambda outputs, targets: (outputs - targets).abs().mean())


def empty() -> Task:
    task = brightness()
    return replace(task, validation=task.validation.head(0))


def broken() -> str:
    return "not a task"


class Diverging(nn.Module):
    """Gives NaN as soon as it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)) * (float("nan") if self.training else 1.0)
