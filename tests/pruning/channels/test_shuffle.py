"""Networks that shuffle and halve their channels, such as ShuffleNet-v2, and splits into parts of known sizes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import torchvision_ops
from pfray.nn.fx import traced_nodes
from pfray.pruning.channels.graph import ChannelGraph, channel_graph
from pfray.pruning.channels.prune import prune
from tests.zoo import conv, head
from tests.zoo.pruning import check_plan, draw

X = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
OUTPUT = "its channels are an output of the model"


class Block(nn.Module):
    """ShuffleNet-v2's: one half passes by, the other is computed, both are shuffled."""

    def __init__(self, half: int) -> None:
        super().__init__()
        self.branch = nn.Conv2d(half, half, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        passed, changed = x.chunk(2, dim=1)
        x = torch.cat([passed, F.relu(self.branch(changed))], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def small() -> nn.Sequential:
    """Of which all channels depend on each other, as long as halves are equal and shuffled as they are."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 2, 1, bias=False)
    return nn.Sequential(first, Block(3), Block(3), last).eval()


def test_channels_between_shuffles_go_one_by_one():
    """With a, b and c for the first layer's and the branches' channels: after the first shuffle a0 b0 a1 b1 a2 b2, of
    which the second branch reads the last three; after the second shuffle a0 c0 b0 c1 a1 c2."""
    model = small()
    graph = channel_graph(model, X)
    index = {group.name: {(c.layer, c.side): c.index.tolist() for c in group.cuts} for group in graph.groups}
    assert {name: len(cuts[name.partition("#")[0], "out"]) for name, cuts in index.items()} == {
        "0": 2, "0#3": 3, "1.branch#2": 2, "2.branch": 3
    }  # fmt: skip
    assert index["0"] == {
        ("0", "out"): [[0], [1]], ("1.split", "out"): [[0], [1]], ("1.shuffle", "out"): [[0], [2]],
        ("2.split", "out"): [[0], [2]], ("2.shuffle", "out"): [[0], [4]], ("3", "in"): [[0], [4]],
    }  # fmt: skip
    assert index["1.branch#2"]["2.branch", "in"] == [[0], [2]]
    assert graph.skipped == {
        "0": "1 of 6 channels: a single channel", "1.branch": "1 of 3 channels: a single channel", "3": OUTPUT
    }  # fmt: skip

    def macs(a: int, read: int, b: int, c: int) -> int:
        """a0 and a1, what the first branch reads, b1 and b2, and c; a2 and b0 stay. 16 pixels."""
        return 16 * (3 * (a + 1 + read) + read * (1 + b) + (1 + b) * c + 2 * (a + 1 + c))

    for counts in ((2, 3, 2, 3), (1, 3, 1, 1), (2, 1, 1, 3), (1, 1, 1, 1)):
        assert graph.costs(counts)["macs"] == macs(*counts)
    for seed in range(6):
        check_plan(model, (X,), graph, draw(graph, seed))


def test_a_pruned_shuffle_keeps_the_order_and_its_weights_load():
    model = small()
    graph = channel_graph(model, X)
    kept = {"0": [1], "0#3": [1], "1.branch#2": [1], "2.branch": [0, 2]}
    pruned = check_plan(model, (X,), graph, kept)
    # a1 a2 | a4, then b0 a1 a2 b2 of a1 a2 b0 b2, then b0 a1 | a2 b2, then c0 b0 a1 c2 of b0 a1 c0 c2.
    assert [pruned[1].split.sizes, pruned[1].shuffle.order.tolist()] == [(2, 1), [2, 0, 1, 3]]
    assert [pruned[2].split.sizes, pruned[2].shuffle.order.tolist()] == [(2, 2), [2, 0, 1, 3]]
    assert not any(hasattr(block, "split") for block in model)
    again = copy.deepcopy(model)
    prune(again, graph, {name: range(len(units)) for name, units in kept.items()})
    assert again[1].shuffle.order.tolist() == [0, 2, 3, 1]
    again.load_state_dict(pruned.state_dict())
    assert torch.equal(again(X), pruned(X))


def test_a_pruned_network_is_pruned_again():
    model = small()
    graph = channel_graph(model, X)
    pruned = check_plan(model, (X,), graph, {"0#3": [0, 2], "2.branch": [0, 1]})
    second = channel_graph(pruned, X)
    assert [(group.name, group.units) for group in second.groups] == [
        ("0", 2), ("0#3", 2), ("1.branch#2", 2), ("2.branch", 2)
    ]  # fmt: skip
    for seed in range(4):
        check_plan(pruned, (X,), second, draw(second, seed))


class Whole(nn.Module):
    """The network itself splits and shuffles, by torch's own functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two, self.last = conv(3, 6), conv(3, 3), nn.Conv2d(3, 3, 1), conv(6, 4)
        self.mix, self.head = nn.ChannelShuffle(2), head(4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.one, self.two):
            a, b = torch.chunk(x if layer is self.two else self.first(x), 2, 1)
            x = F.channel_shuffle(torch.cat([a, layer(b)], 1), 2)
        return self.head(self.last(self.mix(x)))


def test_a_network_that_shuffles_itself_is_followed():
    torch.manual_seed(0)
    model = Whole().eval()
    graph = channel_graph(model, X)
    assert {reason.rpartition(": ")[2] for reason in graph.skipped.values()} == {OUTPUT, "a single channel"}
    for seed in range(4):
        pruned = check_plan(model, (X,), graph, draw(graph, seed))
    nodes = traced_nodes(pruned, {"one.0", "two"}, X)
    assert [node.target for node in nodes].count("index_select") == 2
    assert torch.equal(torch.export.export(pruned, (X,)).module()(X), pruned(X))


class Parts(nn.Module):
    """Parts of sizes that are written in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = conv(3, 8), conv(3, 4), conv(5, 5)
        self.last, self.head = conv(9, 6), head(6)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).split([3, 5], 1)
        return self.head(self.last(torch.cat([self.left(a), b + self.right(b)], 1)))


def test_parts_of_sizes_written_in_the_forward_pass_are_pruned_each_by_itself():
    torch.manual_seed(0)
    model = Parts().eval()
    graph = channel_graph(model, X)
    assert [(group.name, group.units) for group in graph.groups] == [
        ("first.0", 3), ("first.0#2", 5), ("left.0", 4), ("last.0", 6)
    ]  # fmt: skip
    assert list(graph.skipped) == ["head.2"]
    pruned = check_plan(model, (X,), graph, {"first.0": [1, 2], "first.0#2": [0, 3, 4]})
    assert (pruned.split.sizes, pruned.right[0].in_channels) == ((2, 3), 3)
    for seed in range(4):
        check_plan(model, (X,), graph, draw(graph, seed))


# Groups of each network.
NETWORKS = {"shufflenet_v2_x0_5": 80, "shufflenet_v2_x1_0": 86}


@pytest.mark.parametrize("name", NETWORKS)
def test_all_but_the_outputs_of_torchvisions_shufflenet_can_be_pruned(name):
    torchvision_ops.load()
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model, x = torchvision.models.get_model(name).eval(), torch.randn(1, 3, 64, 64)
    graph: ChannelGraph = channel_graph(model, x)
    assert len(graph.groups) == NETWORKS[name]
    assert {reason.rpartition(": ")[2] for reason in graph.skipped.values()} == {OUTPUT, "a single channel"}
    whole, least = (graph.costs(kept)["macs"] for kept in (graph.units, [1] * len(graph.groups)))
    assert least < 0.02 * whole
    check_plan(model, (x,), graph, draw(graph, 0))


class TokensAsAnImage(nn.Module):
    """16 tokens that are an image of 4x4, transposed on the way, for a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last, self.head = nn.Linear(3, 8), nn.Linear(8, 6), conv(6, 5), head(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(2).transpose(1, 2))
        x = x.view(-1, 4, 4, x.shape[2]).transpose(1, 2).reshape(x.shape)
        x = self.second(x.relu())
        return self.head(self.last(x.view(-1, 4, 4, x.shape[2]).permute(0, 3, 1, 2)))


def test_a_view_of_tokens_as_an_image_splits_no_channels():
    torch.manual_seed(0)
    model = TokensAsAnImage().eval()
    graph = channel_graph(model, X)
    assert [(group.name, group.units) for group in graph.groups] == [("first", 8), ("second", 6), ("last.0", 5)]
    for seed in range(4):
        check_plan(model, (X,), graph, draw(graph, seed))


class ShuffledHalves(nn.Module):
    """Halves of shuffled channels go to different layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.channel_shuffle(self.first(x), 2).split([4, 4], 1)
        return self.last(torch.cat([self.left(a), self.right(b)], 1))


class Crossed(nn.Module):
    """Parts that only their activations distinguish."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).split([2, 4], 1)
        return self.last(torch.cat([b.relu(), a.sigmoid()], 1))


def deep() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 1), *(Block(8) for _ in range(4)), nn.Conv2d(16, 2, 1))


@pytest.mark.parametrize("kind", [ShuffledHalves, Crossed, deep, Whole, Parts])
def test_of_any_units_that_stay_their_counts_make_the_same_network_and_its_groups_keep_their_names(kind):
    """A trained network is loaded by counts alone, and stages of group fine-tuning name groups of the one before."""
    torch.manual_seed(0)
    model = kind().eval()
    graph = channel_graph(model, X)
    for seed in range(5):
        kept = draw(graph, seed)
        pruned, again = copy.deepcopy(model), copy.deepcopy(model)
        prune(pruned, graph, kept)
        prune(again, graph, {name: range(len(units)) for name, units in kept.items()})
        again.load_state_dict(pruned.state_dict())
        assert torch.equal(again(X), pruned(X))
        counts = {group.name: len(kept.get(group.name, range(group.units))) for group in graph.groups}
        left = {group.name: group.units for group in channel_graph(pruned, X).groups}
        assert left == {name: count for name, count in counts.items() if count > 1}


def test_a_group_keeps_its_name_if_its_first_channels_go():
    model = ShuffledHalves().eval()
    graph = channel_graph(model, X)
    # The left half reads 0 4 1 5, the right one 2 6 3 7.
    index = {group.name: group.cuts[0].index.ravel().tolist() for group in graph.groups}
    assert (index["first"], index["first#2"]) == ([0, 1, 4, 5], [2, 3, 6, 7])
    prune(model, graph, {"first": [2, 3]})
    left = {group.name: group.cuts[0].index.ravel().tolist() for group in channel_graph(model, X).groups}
    assert (left["first"], left["first#2"]) == ([2, 3], [0, 1, 4, 5])


def test_units_of_different_parts_are_different_groups():
    graph = channel_graph(Crossed().eval(), X)
    assert [(group.name, group.units) for group in graph.groups] == [("first", 2), ("first#2", 4)]
