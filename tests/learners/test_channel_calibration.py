"""Calibrations of channel pruning: few images, wide layers, inputs that hardly vary, and one for all workers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from learners.channel_pruned import ChannelPruned, Settings
from pfray.measure import calibration
from pfray.measure.cost import total_macs
from pfray.nn.modes import place
from pfray.pruning.reconstruction import covariance, lasso
from pfray.task import Split, Task, example_input
from tests.learners.removed import SETTINGS, distance, plainly_removed


def test_less_calibration_than_the_layers_are_wide_still_gives_a_working_model(context):
    trained, task = place(copy.deepcopy(context.teacher), "cpu").eval(), context.task
    algorithm = ChannelPruned(trained, task, Settings(images=3, positions=2, round_to=1))
    space = algorithm.space()
    plan = space.decode(np.full(len(space), 0.5))
    for model in (algorithm.compress(plan).model, algorithm.finish(plan).model):
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
        # Weights of which three images say nothing stay as they were.
        assert distance(model, trained, task) < 1.5


def noise_task(inputs: Tensor, num_outputs: int) -> Task:
    split = Split(inputs, torch.arange(len(inputs)) % num_outputs)
    return Task("noise", split, split, split, num_outputs)


@pytest.mark.parametrize("images", [40, 1000])
def test_a_layer_that_reads_more_features_than_there_are_images_is_solved_for(images):
    """A linear layer that reads 32 flattened channels of 8 x 8."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 20), nn.ReLU(), nn.Linear(20, 5)
    ).eval()
    task = noise_task(torch.randint(256, (images, 3, 8, 8), dtype=torch.uint8), 5)
    algorithm = ChannelPruned(model, task, Settings(images=images, round_to=4))
    for curve in algorithm.error_curves().values():
        assert curve[-1] == 0.0
        assert np.all((curve >= 0) & (curve <= 1))
    for keep in (0.75, 0.25):
        plan = dict.fromkeys(algorithm.space().names, keep)
        plain = distance(plainly_removed(model, plan, task), model, task)
        for found in (algorithm.compress(plan).model, algorithm.finish(plan).model):
            assert distance(found, model, task) < min(0.9 * plain, 1.0)


def test_inputs_that_hardly_vary_around_large_means_are_pruned_and_reconstructed():
    """Temperatures in kelvin, 293 +- 1, without batch norms: hidden values are large and hardly vary."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2),
    ).eval()  # fmt: skip
    slope = (torch.arange(240) % 2 * 2 - 1)[:, None, None] * torch.linspace(-1, 1, 24)
    task = noise_task(293 + slope + 0.3 * torch.randn(240, 1, 24), 2)
    algorithm = ChannelPruned(model, task, Settings(round_to=4))
    assert all(np.all(np.diff(curve) <= 1e-3) for curve in algorithm.error_curves().values())
    plan = dict.fromkeys(algorithm.space().names, 0.5)
    for found in (algorithm.compress(plan).model, algorithm.finish(plan).model):
        assert distance(found, model, task) < 0.2


def test_a_calibration_is_computed_once_for_all_workers(context, monkeypatch, tmp_path):
    trained, task = place(copy.deepcopy(context.teacher), "cpu").eval(), context.task
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path))
    plan = {"conv1": 0.5, "conv2": 0.5}
    first = ChannelPruned(copy.deepcopy(trained), task, SETTINGS).compress(plan).model
    monkeypatch.setattr(lasso, "lasso_selections", lambda gram: pytest.fail("computed again"))
    monkeypatch.setattr(covariance, "input_moments", lambda *args: pytest.fail("measured again"))
    again = ChannelPruned(copy.deepcopy(trained), task, SETTINGS).compress(plan).model
    assert all(torch.equal(first.state_dict()[name], tensor) for name, tensor in again.state_dict().items())


def test_a_network_that_costs_much_is_calibrated_on_fewer_images_and_says_so(context, monkeypatch):
    trained, task = place(copy.deepcopy(context.teacher), "cpu").eval(), context.task
    default = ChannelPruned(trained, task, Settings(round_to=2))
    assert (default.images, default.notes()) == (1000, [])
    monkeypatch.setattr(calibration, "MACS", 100.4 * default.macs)
    costly = ChannelPruned(trained, task, Settings(round_to=2))
    assert costly.images == 100
    assert "channel_pruned calibrates on 100 training inputs instead of 1,000" in costly.notes()[0]
    explicit = ChannelPruned(trained, task, Settings(images=100, round_to=2))
    assert explicit.notes() == []
    # Those are what both steps read.
    plan = costly.space().uniform({"macs": 0.5 * total_macs(trained, example_input(task))})
    for step in ("compress", "finish"):
        found, expected = (getattr(each, step)(plan).model.state_dict() for each in (costly, explicit))
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
