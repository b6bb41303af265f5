"""A network of a few weights, and a task of forty samples for it."""

from __future__ import annotations

import torch
from torch import nn

from pfray.task import Split, Task


def toy_task() -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)
    # The number of its sample is written into each target, so that a test can tell which ones were used.
    split = Split(inputs, torch.arange(40))
    return Task("toy", split, split, split, 40, mean=(0.5,), std=(0.3,))


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 40)
    )


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
