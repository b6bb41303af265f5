"""A network of a few weights, and a task of forty samples for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

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


class Shifted(Dataset):
    """The toy task's images, each moved by a random number of pixels when it is read."""

    def __init__(self, task: Task) -> None:
        self.images, self.targets = task.train.head(None).inputs, task.train.head(None).targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index].roll(int(torch.randint(0, 8, ())), dims=2), self.targets[index]
