"""Networks refitted in order, and the error that is left. Shared by the tests of the reconstruction."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pfray.pruning.channels.graph import ChannelGraph, channel_graph
from pfray.pruning.channels.prune import Kept, prune
from pfray.pruning.reconstruction.sequential import reconstruct_in_order
from pfray.task import Task
from tests.zoo import randomize

IMAGES, POSITIONS = 60, 1000
GRAPHS: dict[Callable[[], nn.Module], tuple[nn.Module, ChannelGraph]] = {}


def graph_of(make: Callable[[], nn.Module]) -> tuple[nn.Module, ChannelGraph]:
    """(the model, always with the same weights; its graph, found once)."""
    torch.manual_seed(0)
    model = randomize(make()).eval()
    if make not in GRAPHS:
        GRAPHS[make] = model, channel_graph(model, torch.randn(1, 3, 8, 8))
    return copy.deepcopy(model), GRAPHS[make][1]


def refitted(model: nn.Module, graph: ChannelGraph, kept: Kept, task: Task) -> nn.Module:
    return reconstruct_in_order(model, graph, kept, task, IMAGES, POSITIONS)


def pruned(model: nn.Module, graph: ChannelGraph, kept: Kept) -> nn.Module:
    student = copy.deepcopy(model).eval()
    prune(student, graph, kept)
    return student


@torch.no_grad()
def error(model: nn.Module, student: nn.Module, task: Task) -> float:
    """Squared error of the outputs as a share of their variance, with the teacher in evaluation mode."""
    own = copy.deepcopy(model).eval()(task.train.inputs)
    return ((student(task.train.inputs) - own).square().sum() / (own - own.mean(0)).square().sum()).item()


def assert_least_squares(model: nn.Module, student: nn.Module, task: Task, name: str) -> None:
    """The layer's weights are the best there are for what the student's layer reads and the teacher's gives."""
    seen: dict[str, Tensor] = {}
    handles = [
        own.get_submodule(name).register_forward_hook(lambda _, args, out, key=key: seen.update({key: (args[0], out)}))
        for key, own in (("teacher", model), ("student", student))
    ]
    with torch.no_grad():
        for own in (model, student):
            own(task.train.inputs)
    for handle in handles:
        handle.remove()
    target, (rows, outputs) = seen["teacher"][1], seen["student"]
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    best = (rows @ torch.linalg.lstsq(rows, target).solution - target).square().sum()
    assert (outputs - target).square().sum() < 1.02 * best
