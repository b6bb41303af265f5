"""Channels that several layers read, or only layers without a least-squares reconstruction."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learners.channel_pruned import Calibration, ChannelPruned, Settings, group_errors, readers, selection_gram
from pfray.data import digits
from pfray.measure.cost import total_macs
from pfray.measure.evaluation import answers_of
from pfray.nn.modes import place
from pfray.task import Task, example_input

SETTINGS = Settings(images=500, positions=20, round_to=2)


@pytest.fixture(scope="module")
def task() -> Task:
    return digits.build()


class Readers(nn.Module):
    """Channels that only a grouped, only a transposed, and several convolutions read; one group of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.grouped = nn.Conv2d(1, 8, 3, 4), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.conv2, self.transposed = nn.Conv2d(8, 6, 3), nn.ConvTranspose2d(6, 6, 2)
        self.left, self.right = nn.Conv2d(6, 5, 1), nn.Conv2d(6, 5, 3, padding=1)
        self.narrow, self.last, self.fc = nn.Conv2d(5, 1, 1), nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.transposed(F.relu(self.conv2(F.relu(self.grouped(F.relu(self.conv1(x))))))))
        x = F.relu(self.left(x) + self.right(x))
        return self.fc(F.relu(self.last(F.relu(self.narrow(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def unusual(task: Task) -> ChannelPruned:
    torch.manual_seed(0)
    return ChannelPruned(place(Readers().eval(), "cpu"), task, SETTINGS)


def test_without_a_reader_that_is_a_matrix_product_the_weights_decide(unusual):
    model, calibration = unusual.model, unusual.calibration
    groups = {group.name: group for group in calibration.graph.groups}
    for name, maker in (("conv1", model.conv1), ("conv2", model.conv2)):
        assert readers(model, groups[name]) == []
        energy = maker.weight.detach().flatten(1).square().sum(1)
        index = groups[name].cuts[0].index
        expected = np.diag(energy.numpy()[index].sum(1))
        np.testing.assert_allclose(selection_gram(model, groups[name], calibration.moments), expected, rtol=1e-5)
        units = groups[name].units
        assert calibration.kept[name][1].tolist() == [int(np.diag(expected).argmax())]
        kept = calibration.kept[name][units // 2]
        error = group_errors(model, calibration, groups[name], [units // 2])[units // 2]
        assert error == pytest.approx(1 - np.diag(expected)[kept].sum() / expected.sum())


def test_a_group_of_one_channel_stays_and_all_else_runs_at_every_plan(unusual, task):
    calibration = unusual.calibration
    assert "narrow" not in calibration.kept
    assert "single channel" in calibration.graph.skipped["narrow"]
    space = unusual.space()
    for position in (0.0, 0.5):
        plan = space.decode(np.full(len(space), position))
        for pruned in (unusual.compress(plan).model, unusual.finish(plan).model):
            assert total_macs(pruned, example_input(task)) == space.costs(plan)["macs"]
            assert torch.cat([batch.outputs for batch in answers_of(pruned, task, task.validation)]).isfinite().all()


def test_of_several_readers_each_counts_the_same_and_their_errors_add_up(unusual):
    model, calibration = unusual.model, unusual.calibration
    group = next(group for group in calibration.graph.groups if group.name == "transposed")
    own = readers(model, group)
    assert {cut.layer for cut in own} == {"left", "right"}
    whole = selection_gram(model, group, calibration.moments)
    # The sum over all entries is the variance of what they contribute: 1 of each reader.
    assert whole.sum() == pytest.approx(2.0)
    with torch.no_grad():
        scaled = copy.deepcopy(model)
        scaled.left.weight *= 100
    np.testing.assert_allclose(selection_gram(scaled, group, calibration.moments), whole, rtol=1e-6)
    error = group_errors(model, calibration, group, [3])[3]
    parts = []
    for layer in ("left", "right"):
        only = {layer: calibration.moments[layer]}
        parts.append(group_errors(model, Calibration(calibration.graph, only, calibration.kept, {}), group, [3])[3])
    assert error == pytest.approx(1 - (1 - parts[0]) * (1 - parts[1]))
    assert min(parts) > 0
