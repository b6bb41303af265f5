"""The reconstruction in order: what it makes up for, and that what it fits to is what the pruned network computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.errors import UnsupportedModel
from pfray.pruning.channels.graph import channel_graph
from pfray.pruning.reconstruction import sequential
from pfray.pruning.reconstruction.sequential import reconstruct_in_order
from pfray.task import Split, Task
from tests.pruning.reconstruction.refitting import (
    IMAGES,
    assert_least_squares,
    error,
    graph_of,
    pruned,
    refitted,
)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, bias=False)
        self.bn2, self.conv3 = nn.BatchNorm2d(6), nn.Conv2d(6, 5, 2, 2)
        self.fc = nn.Linear(5 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.conv1(x)))))
        return self.fc(F.relu(self.conv3(x)).flatten(1))


def redundant() -> nn.Module:
    """Of conv1 channel 6 is twice channel 1, channel 7 a constant; of conv2 channel 4 is a copy of channel 0."""
    model = Chain()
    with torch.no_grad():
        for name in ("weight", "bias"):
            parameter = getattr(model.conv1, name)
            parameter[6], parameter[7] = 2 * parameter[1], 0.0
        model.conv1.bias[7] = 3.0
        model.conv2.weight[4] = model.conv2.weight[0]
    return model


def agree_in_channel_4(model: nn.Module) -> None:
    for own in (model.bn2.weight, model.bn2.bias, model.bn2.running_mean, model.bn2.running_var):
        own.data[4] = own.data[0]


def test_removed_channels_that_are_combinations_of_kept_ones_are_made_up_for(task):
    model, graph = graph_of(redundant)
    agree_in_channel_4(model)
    kept = {"conv1": range(6), "conv2": [0, 1, 2, 3, 5]}
    student = refitted(model, graph, kept, task)
    assert (student.conv1.out_channels, student.conv2.in_channels, student.conv2.out_channels) == (6, 6, 5)
    assert error(model, student, task) < 1e-3 < 0.05 < error(model, pruned(model, graph, kept), task)
    # conv2 has no bias: what the constant channel contributed went into the batch norm.
    constant = 3 * model.conv2.weight[[0, 1, 2, 3, 5], 7].sum((1, 2))
    moved = student.bn2.running_mean - model.bn2.running_mean[[0, 1, 2, 3, 5]]
    assert torch.allclose(moved, -constant, atol=0.02 * constant.abs().max().item())
    assert student.conv2.bias is None


def test_a_constant_goes_into_the_bias_where_there_is_one(task):
    model, graph = graph_of(redundant)
    with torch.no_grad():
        model.bn2.weight[5], model.bn2.bias[5] = 0.0, 1.0
    student = refitted(model, graph, {"conv2": range(5)}, task)
    moved = student.conv3.bias - model.conv3.bias
    assert torch.allclose(moved, model.conv3.weight[:, 5].sum((1, 2)), atol=1e-3)
    assert torch.allclose(student.conv3.weight, model.conv3.weight[:, :5], atol=1e-3)
    assert error(model, student, task) < 1e-6


def test_without_a_place_for_a_constant_the_weights_make_up_for_it(task):
    model, graph = graph_of(redundant)
    model.conv3.bias = None
    student = refitted(model, graph, {"conv2": [0, 1, 2]}, task)
    assert student.conv3.bias is None
    assert error(model, student, task) < 0.8 * error(model, pruned(model, graph, {"conv2": [0, 1, 2]}), task)


def test_a_layer_is_fitted_to_what_the_pruned_layers_before_it_give(task):
    model, graph = graph_of(redundant)
    kept = {"conv1": range(4), "conv2": range(3), "conv3": range(3)}
    student = refitted(model, graph, kept, task)
    assert error(model, student, task) < 0.5 * error(model, pruned(model, graph, kept), task)
    assert_least_squares(model, student, task, "fc")


def test_where_nothing_goes_nothing_changes_before_the_first_cut(task):
    model, graph = graph_of(redundant)
    student = refitted(model, graph, {group.name: range(group.units) for group in graph.groups}, task)
    assert torch.equal(student.conv1.weight, model.conv1.weight)
    assert error(model, student, task) < 1e-10


def test_a_calibration_smaller_than_the_layer_is_wide_gives_finite_weights(task):
    model, graph = graph_of(redundant)
    kept = {"conv1": range(5), "conv2": range(4)}
    student = reconstruct_in_order(model, graph, kept, task, images=3, positions=2)
    assert all(tensor.isfinite().all() for tensor in student.state_dict().values())
    # Six rows say little of 45 and more weights, and those that they say nothing of stay.
    assert error(model, student, task) < 2 * error(model, pruned(model, graph, kept), task)


def test_values_that_are_not_finite_are_refused_by_the_layers_name(task):
    model, graph = graph_of(redundant)
    model.conv1.bias.data[0] = np.inf
    with pytest.raises(UnsupportedModel, match=r"layer conv2 reads or should give values that are not finite. Remedy"):
        refitted(model, graph, {"conv1": range(4)}, task)


def test_inputs_that_would_need_too_much_memory_are_fewer_with_more_positions_each(task, monkeypatch):
    drawn = []
    draw = sequential.draw_positions
    monkeypatch.setattr(
        sequential, "draw_positions", lambda *args: drawn.append((len(args[1]), args[2])) or draw(*args)
    )
    model, graph = graph_of(redundant)
    kept = {"conv1": range(6)}
    reconstruct_in_order(model, graph, kept, task, IMAGES, 4)
    assert set(drawn) == {(60, 4)}
    drawn.clear()
    # At most conv1's output and what relu makes of it, (8, 6, 6) each in float32: 2,304 bytes in each of the two walks.
    monkeypatch.setattr(sequential, "MEMORY", 20 * 2 * 2304)
    fewer = reconstruct_in_order(model, graph, kept, task, IMAGES, 4)
    assert set(drawn) == {(20, 12)}
    assert error(model, fewer, task) < 1e-2 < error(model, pruned(model, graph, kept), task)


def test_inputs_far_from_zero_are_fitted_as_if_they_were_centred():
    """Temperatures in kelvin, 293 +- 1; the last channels are combinations of the others."""
    generator = torch.Generator().manual_seed(0)
    inputs = 293 + torch.randn(400, 6, generator=generator)
    split = Split(inputs, torch.zeros(400, dtype=torch.int64))
    own = Task("kelvin", split, split, split, num_outputs=3)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 3)).eval()
    graph = channel_graph(model, inputs[:1])
    student = reconstruct_in_order(model, graph, {"0": range(6)}, own, 400, 1)
    assert error(model, student, own) < 1e-2 < error(model, pruned(model, graph, {"0": range(6)}), own)
