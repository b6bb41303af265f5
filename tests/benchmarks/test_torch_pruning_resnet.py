"""Torch-Pruning as its documentation uses it: which channels go, how many, and its learning rate."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from benchmarks.torch_pruning_resnet import own_decay, own_training, prune, rate
from pfray.measure.cost import total_macs
from pfray.models.resnet import CifarResNet
from tests.zoo import randomize

EXAMPLE = torch.zeros(1, 3, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return randomize(CifarResNet(8)).eval()


def test_the_macs_are_at_most_those_asked_for_and_the_residual_stream_is_whole() -> None:
    model = network()
    whole = total_macs(model, EXAMPLE)
    prune(model, EXAMPLE, 2.5)
    # A step takes a channel or two of 112.
    assert 0.38 * whole < total_macs(model, EXAMPLE) <= whole / 2.5
    outputs = {name: layer.out_channels for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    stream = {"conv1": 16, "layer1.0.conv2": 16, "layer2.0.conv2": 32, "layer3.0.conv2": 64}
    assert {name: outputs[name] for name in stream} == stream
    assert sum(outputs[f"layer{n}.0.conv1"] for n in (1, 2, 3)) < 112
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_channels_of_small_groups_go_first() -> None:
    model = network()
    block = model.layer1[0]
    with torch.no_grad():
        for weight in (block.conv1.weight, block.bn1.weight, block.bn1.bias, block.conv2.weight.transpose(0, 1)):
            weight[::2] *= 1e-3
    before = copy.deepcopy(block.conv1.weight)
    prune(model, EXAMPLE, 1.15)
    kept = {i for i in range(16) if any(torch.equal(filter, before[i]) for filter in block.conv1.weight)}
    assert len(kept) == block.conv1.out_channels < 16
    assert kept >= set(range(1, 16, 2))


def test_more_than_can_go_is_an_error() -> None:
    with pytest.raises(ValueError, match="last step leaves"):
        prune(network(), EXAMPLE, 100.0)


def test_the_learning_rate_is_a_tenth_after_60_and_80_percent() -> None:
    assert [rate(step, 100) for step in (0, 59, 60, 79, 80, 99)] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    training = own_training(20)
    assert (training.epochs, training.lr, training.weight_decay, training.batch_size) == (20, 0.01, 5e-4, 128)


def test_steps_inside_are_those_of_plain_momentum_at_its_rate() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9, nesterov=True)
    with own_decay(5) as hook:
        hook(0)
        for step in range(5):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            hook(step + 1)
    # The momentum of a gradient of 1: 1, 1 + 0.9, ...
    expected = 0.01 * (1 + 1.9 + 2.71) + 0.001 * 3.439 + 0.0001 * 4.0951
    assert weight.item() == pytest.approx(-expected, rel=1e-9)
    optimizer.param_groups[0].update(lr=1.0, momentum=0.0)
    optimizer.step()
    assert weight.item() == pytest.approx(-expected - 1.0, rel=1e-9)
