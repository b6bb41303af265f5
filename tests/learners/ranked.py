"""Small networks whose filters are ranked, for the tests of the ranking learner."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from learners.filter_ranked import FilterRanked, Settings, rank
from pfray.pruning.channels.keep_ratios import graph_of
from pfray.task import Split, Task
from tests.zoo import head, randomize

EVERY = {"round_to": 1}


def make_task(shape: tuple[int, ...] = (1, 8, 8), classes: int = 3, samples: int = 40) -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, *shape, generator=generator)
    split = Split(inputs, torch.randint(classes, (samples,), generator=generator))
    return Task("random", split, split.head(20), split.head(20), classes)


def plain() -> nn.Module:
    """Two convolutions with 4 channels each, the first with batch norm."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()
    return randomize(nn.Sequential(*layers, *head(4, 3))).eval()


def scores(model: nn.Module, task: Task, **settings) -> dict[str, np.ndarray]:
    return rank(model, graph_of(model, task).groups, task, Settings(**settings))


def compress(model: nn.Module, task: Task, plan: dict, **settings) -> nn.Module:
    return FilterRanked(model, task, Settings(**EVERY, **settings)).compress(plan).model
