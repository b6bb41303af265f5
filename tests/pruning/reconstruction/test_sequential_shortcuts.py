"""The reconstruction in order of residual networks, with operations in place."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.pruning.reconstruction import sequential
from pfray.task import Task
from tests.pruning.reconstruction.refitting import (
    assert_least_squares,
    graph_of,
    pruned,
    refitted,
)


class Block(nn.Module):
    """Projections where ``stride`` is 2; sums and activations in place."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 8, 3, stride, 1)
        self.conv2 = nn.Conv2d(8, outputs, 3, 1, 1, bias=not norm)
        self.bn2 = nn.BatchNorm2d(outputs) if norm else None
        self.project = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.conv1(x), inplace=True))
        out = out if self.bn2 is None else self.bn2(out)
        out += x if self.project is None else self.project(x)
        return out


class Residual(nn.Module):
    def __init__(self, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.Sequential(Block(6, 6, stride, norm), nn.ReLU(inplace=True), Block(6, 6, 1, norm))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        return self.fc(self.blocks(x).mean((2, 3)))


def identity_with_norm() -> nn.Module:
    return Residual()


def identity_without_norm() -> nn.Module:
    return Residual(norm=False)


def projection() -> nn.Module:
    return Residual(stride=2)


NETWORKS = [identity_with_norm, identity_without_norm, projection]


@torch.no_grad()
def block_error(model: nn.Module, student: nn.Module, task: Task) -> float:
    """Of the last block's output."""
    own, other = (net.blocks(F.relu(net.stem(task.train.inputs))) for net in (model, student))
    return ((other - own).square().sum() / (own - own.mean((0, 2, 3), keepdim=True)).square().sum()).item()


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_the_last_layer_of_a_branch_makes_up_for_what_the_shortcut_has_lost(task, make, monkeypatch):
    model, graph = graph_of(make)
    kept = {"blocks.0.conv1": range(2)}
    compensated = block_error(model, refitted(model, graph, kept, task), task)
    monkeypatch.setattr(sequential, "find_addition", lambda *_: None)
    alone = block_error(model, refitted(model, graph, kept, task), task)
    assert compensated < 0.9 * alone
    assert alone < 0.9 * block_error(model, pruned(model, graph, kept), task)


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_what_is_walked_is_what_the_network_computes_whatever_is_done_in_place(task, make, monkeypatch):
    walks = []

    class Recorded(sequential.Walk):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            walks.append(self)

    monkeypatch.setattr(sequential, "Walk", Recorded)
    model, graph = graph_of(make)
    kept = {group.name: range(max(1, group.units // 2)) for group in graph.groups}
    assert len(kept) >= 2
    before, inputs = copy.deepcopy(model.state_dict()), task.train.inputs.clone()
    student = refitted(model, graph, kept, task)
    for walk, network in zip(walks[-2:], (model, student), strict=True):
        # Nothing but the outputs is kept to the end.
        assert [node.op for node in walk.values] == ["output"]
        with torch.no_grad():
            assert torch.allclose(next(iter(walk.values.values()))[0], network(task.train.inputs), atol=1e-5)
    assert_least_squares(model, student, task, "fc")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(inputs, task.train.inputs)
    assert not student.training
