"""The hidden features of recurrent layers, and the features they read, as groups."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfray.nn.fx import tensors
from pfray.pruning.channels.graph import ChannelGraph, channel_graph
from pfray.pruning.channels.prune import prune
from tests.zoo.pruning import check_plan, draw

IN, HIDDEN, STEPS = 5, 6, 7


class Sequences(nn.Module):
    """Features, a recurrent layer, and what reads its outputs: all steps, the last one, or the final states."""

    def __init__(self, kind: type[nn.RNNBase], reads: str, **options: Any) -> None:
        super().__init__()
        self.kind, self.reads = kind, reads
        self.before, self.rnn = nn.Linear(3, IN), kind(IN, HIDDEN, **options)
        width = HIDDEN * (2 if self.rnn.bidirectional and reads != "states" else 1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x).relu()
        outputs, states = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        if self.reads == "states":
            return self.head(sum(states)[-1] if self.kind is nn.LSTM else states[-1])
        outputs = outputs if self.rnn.batch_first else outputs.transpose(0, 1)
        return self.head(outputs if self.reads == "steps" else outputs[:, -1])


def built(kind: type[nn.RNNBase], reads: str = "last", **options: Any) -> tuple[nn.Module, tuple[Tensor], ChannelGraph]:
    torch.manual_seed(0)
    model, inputs = Sequences(kind, reads, **options).eval(), (torch.randn(1, STEPS, 3),)
    return model, inputs, channel_graph(model, inputs)


CASES: list[tuple[type[nn.RNNBase], str, dict[str, Any]]] = [
    (nn.LSTM, "last", {"batch_first": True}),
    (nn.LSTM, "states", {"num_layers": 2}),
    (nn.LSTM, "steps", {"bidirectional": True, "num_layers": 2, "batch_first": True}),
    (nn.GRU, "last", {"bias": False}),
    (nn.GRU, "states", {"bidirectional": True, "batch_first": True}),
    (nn.RNN, "steps", {"nonlinearity": "relu", "num_layers": 3}),
]


@pytest.mark.parametrize(("kind", "reads", "options"), CASES)
def test_hidden_and_read_features_are_removed_with_all_that_belongs_to_them(kind, reads, options):
    model, inputs, graph = built(kind, reads, **options)
    assert [(group.name, group.units) for group in graph.groups] == [("before", IN), ("rnn", HIDDEN)]
    for seed in range(4):
        check_plan(model, inputs, graph, draw(graph, seed))
    pruned = check_plan(model, inputs, graph, {"before": [0, 3], "rnn": [1, 2, 5]})
    assert (pruned.rnn.input_size, pruned.rnn.hidden_size) == (2, 3)
    again = channel_graph(pruned, inputs)
    assert [(group.name, group.units) for group in again.groups] == [("before", 2), ("rnn", 3)]
    check_plan(pruned, inputs, again, {"rnn": [2]})
    pruned.train()(torch.randn(2, STEPS, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    assert model.rnn.weight_hh_l0.shape[1] == HIDDEN


def test_costs_are_those_worked_out_by_hand():
    _, _, graph = built(nn.LSTM, "last", num_layers=2, bidirectional=True, batch_first=True)

    def by_hand(i: int, h: int) -> dict[str, int]:
        # The first layer's four gates read i features, the second's both directions of the first; both read themselves.
        weights = 2 * (4 * h * i + 4 * h * h) + 2 * (4 * h * 2 * h + 4 * h * h)
        return {"macs": STEPS * (3 * i + weights) + 2 * h * 4, "params": 4 * i + weights + 4 * 8 * h + 2 * h * 4 + 4}

    for i in range(1, IN + 1):
        for h in range(1, HIDDEN + 1):
            assert graph.costs([i, h]) == by_hand(i, h)


def test_the_states_that_a_model_starts_from_are_cut_too():
    class Start(Sequences):
        def __init__(self) -> None:
            super().__init__(nn.GRU, "last", batch_first=True)
            self.start = nn.Parameter(torch.randn(1, 1, HIDDEN))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(self.before(x), self.start.expand(-1, len(x), -1).contiguous())[0][:, -1])

    torch.manual_seed(0)
    model, inputs = Start().eval(), (torch.randn(1, STEPS, 3),)
    graph = channel_graph(model, inputs)
    pruned = check_plan(model, inputs, graph, {"rnn": [0, 4]})
    assert pruned.start.shape == (1, 1, 2)


def test_two_layers_that_follow_each_other_on_integers():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.one, self.two = nn.Embedding(9, 4), nn.GRU(4, 6, batch_first=True), nn.LSTM(6, 5)
            self.head = nn.Linear(5, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.two(self.one(self.embed(tokens))[0].transpose(0, 1))[1][0][-1])

    torch.manual_seed(0)
    model, inputs = Two().eval(), (torch.tensor([[1, 5, 8, 2]]),)
    graph = channel_graph(model, inputs)
    assert [(group.name, group.units) for group in graph.groups] == [("embed", 4), ("one", 6), ("two", 5)]
    for seed in range(3):
        check_plan(model, inputs, graph, draw(graph, seed))


def test_what_cannot_be_removed_has_a_reason():
    _, _, graph = built(nn.LSTM, "last", batch_first=True, proj_size=0)
    assert "rnn" not in graph.skipped
    model = nn.Sequential(nn.Linear(3, IN), nn.LSTM(IN, HIDDEN, proj_size=4, batch_first=True)).eval()
    projected = channel_graph(model, torch.randn(1, STEPS, 3))
    assert projected.skipped["1"] == "a recurrent layer with projections"
    outputs = channel_graph(nn.GRU(IN, HIDDEN).eval(), torch.randn(STEPS, IN))
    assert not outputs.groups
    last = nn.Sequential(nn.Linear(3, IN), nn.GRU(IN, HIDDEN, batch_first=True)).eval()
    graph = channel_graph(last, torch.randn(1, STEPS, 3))
    assert [group.name for group in graph.groups] == ["0"]
    assert graph.skipped["1"] == "its channels are an output of the model"
    pruned = copy.deepcopy(last)
    prune(pruned, graph, {"0": [1]})
    assert tensors(pruned(torch.randn(1, STEPS, 3)))[0].shape == (1, STEPS, HIDDEN)
