"""Channels that are split into parts, and sizes that a module keeps as numbers of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.errors import UnsupportedModel
from pfray.nn.fx import traced_nodes
from pfray.pruning.channels.graph import ChannelGraph, channel_graph
from pfray.pruning.channels.prune import prune
from tests.zoo import ZOO, conv, head
from tests.zoo.pruning import check_plan, draw

EXAMPLE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
# The reason for channels that a forward pass with numbers in it splits.
FIXED = "split into parts of fixed sizes by the forward pass"


class Halves(nn.Module):
    """The first half passes by, the second one goes through two layers."""

    def __init__(self, split: Callable[[Tensor, int], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.split, self.width = split, 5
        self.first, self.one, self.two = conv(3, 10), conv(5, 4), conv(4, 5)
        self.last, self.head = conv(10, 6), head(6)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.split(self.first(x), self.width)
        return self.head(self.last(torch.cat([a, b + self.two(self.one(b))], 1)))


def halves_of(split: Callable[[Tensor, int], tuple[Tensor, ...]]) -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    model = Halves(split).eval()
    graph = channel_graph(model, EXAMPLE)
    for seed in range(4):
        check_plan(model, (EXAMPLE,), graph, draw(graph, seed))
    return model, graph


COUPLED = {
    "chunk": lambda x, width: x.chunk(2, 1),
    "half of the size": lambda x, width: x.split(x.shape[1] // 2, 1),
    "slices of the half": lambda x, width: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]),
    "the module's number": lambda x, width: x.split(width, 1),
    "the module's numbers": lambda x, width: x.split((width, width), 1),
}


@pytest.mark.parametrize("way", COUPLED)
def test_equal_parts_lose_the_same_channels(way):
    model, graph = halves_of(COUPLED[way])
    assert [(group.name, group.units) for group in graph.groups] == [("first.0", 5), ("one.0", 4), ("last.0", 6)]
    index = {(cut.layer, cut.side): cut.index.tolist() for cut in graph.groups[0].cuts}
    assert index["first.0", "out"] == [[i, i + 5] for i in range(5)]
    assert index["two.0", "out"] == [[i] for i in range(5)]
    assert list(graph.skipped) == ["head.2"]
    pruned = copy.deepcopy(model)
    prune(pruned, graph, {"first.0": [0, 3]})
    assert (pruned.first[0].out_channels, pruned.two[0].out_channels) == (4, 2)
    assert pruned.width == (2 if "number" in way else 5)


def test_parts_of_known_sizes_are_pruned_each_by_itself():
    model, graph = halves_of(lambda x, width: (x[:, :width], x[:, width:]))
    names = [(group.name, group.units) for group in graph.groups]
    assert names == [("first.0", 5), ("first.0#2", 5), ("one.0", 4), ("last.0", 6)]
    pruned = copy.deepcopy(model)
    prune(pruned, graph, {"first.0": [1], "first.0#2": [0, 1, 2]})
    assert (pruned.width, pruned.first[0].out_channels, pruned.two[0].out_channels) == (1, 4, 3)


def test_a_number_in_a_forward_pass_that_cannot_be_written_out_keeps_its_channels_with_the_reason():
    _, graph = halves_of(lambda x, width: x.split(5, 1) if x.shape[1] == 10 else x.split([5, 5], 1))
    assert [group.name for group in graph.groups] == ["one.0", "last.0"]
    assert graph.skipped["first.0"] == graph.skipped["two.0"] == FIXED


class Shaped(nn.Module):
    """A parameter that is viewed in a shape of the module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale, self.shape = conv(3, 6), nn.Parameter(torch.rand(6)), (6, 1, 1)
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x) * self.scale.view(self.shape))


def test_a_shape_among_the_attributes_shrinks_with_its_channels():
    model = Shaped().eval()
    graph = channel_graph(model, EXAMPLE)
    assert [(group.name, group.units) for group in graph.groups] == [("first.0", 6)]
    pruned = check_plan(model, (EXAMPLE,), graph, {"first.0": [0, 2, 5]})
    assert pruned.shape == (3, 1, 1)
    assert torch.equal(pruned.scale, model.scale[[0, 2, 5]])
    assert model.shape == (6, 1, 1)
    with pytest.raises(UnsupportedModel, match=r"layer first.0 has 3 output channels, .* made for 6\."):
        prune(pruned, graph, {"first.0": [0]})


class Unused(nn.Module):
    """Numbers of the right size that the forward pass uses for something else, or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 6), conv(6, 6), head(6)
        self.repeats, self.planes = 6, 6

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(F.relu(self.first(x)))) / self.repeats


def test_numbers_of_another_meaning_stay():
    model = Unused().eval()
    graph = channel_graph(model, EXAMPLE)
    pruned = check_plan(model, (EXAMPLE,), graph, {"first.0": [0, 1], "second.0": [0]})
    assert (pruned.repeats, pruned.planes) == (6, 6)


def test_a_loop_over_the_parts_is_traced():
    model, (example,) = ZOO["C2f"]()
    nodes = traced_nodes(model, set(), example)
    assert [node.target for node in nodes].count("chunk") == 1
