from __future__ import annotations

import pytest
import torch

from benchmarks.studies import layer_removal
from pfray.errors import UnsupportedModel


def test_filters_are_ranked_away_until_so_many_are_gone_or_the_size_is_reached():
    from pfray.data import digits
    from pfray.measure.cost import count_params
    from pfray.models.lenet import lenet
    from pfray.pruning.channels.keep_ratios import graph_of

    task = digits.build()
    torch.manual_seed(0)
    model = lenet(in_channels=1)

    def filters(of: torch.nn.Module) -> list[int]:
        return [group.units for group in graph_of(of, task).groups]

    whole, params = filters(model), count_params(model)[0]
    fewer = layer_removal.rank_away(model, task, params=1, most=30)
    assert sum(filters(fewer)) == sum(whole) - 30
    assert filters(model) == whole
    reached = layer_removal.rank_away(model, task, params=0.9 * params, most=1000)
    # One filter more would be too large: the largest of LeNet's has 421 parameters.
    assert 0.9 * params - 421 < count_params(reached)[0] <= 0.9 * params
    smallest = layer_removal.rank_away(model, task, params=1, most=1000)
    with pytest.raises(UnsupportedModel, match="conv1: a single channel; conv2: a single channel"):
        layer_removal.rank_away(smallest, task, params=1, most=10)


def test_a_network_is_searched_from_nothing_and_trained_like_the_students():
    kind = ["digits", "vgg11", 0.0625, 1]
    chosen = layer_removal.choose_network(["architecture", kind, 3, 0])
    assert len(chosen["rewards"]) == 3
    assert chosen["reward"] == max(chosen["rewards"])
    [stage] = layer_removal.train(["architecture", kind, 1, 0, chosen["plan"], []])["stages"]
    assert stage["fewer"] >= 1 / layer_removal.LARGEST
    assert 0 < stage["test"] < 1
