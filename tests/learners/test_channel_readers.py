"""Channels that several layers read, or only layers without a least-squares reconstruction."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learners._channel_calibration import Calibration, group_errors, readers, selection_gram
from learners.channel_pruned import ChannelPruned, Settings
from pfray.data import digits
from pfray.measure.cost import total_macs
from pfray.measure.evaluation import answers_of
from pfray.nn.modes import place
from pfray.pruning.channels.importance import filter_magnitudes
from pfray.task import Split, Task, example_input

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
        one = Calibration(calibration.graph, calibration.kept, {}, only.copy)
        parts.append(group_errors(model, one, group, [3])[3])
    assert error == pytest.approx(1 - (1 - parts[0]) * (1 - parts[1]))
    assert min(parts) > 0


class Words(nn.Module):
    """Embeddings that only a recurrent layer reads, whose features a norm passes on to another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Embedding(50, 16), nn.LSTM(16, 6, batch_first=True)
        self.norm, self.second, self.fc = nn.LayerNorm(6), nn.GRU(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.second(self.norm(self.first(self.embed(ids))[0]))[0].mean(1))


def test_what_only_recurrent_layers_read_is_judged_by_the_weights_that_make_it():
    torch.manual_seed(0)
    model = Words().eval()
    with torch.no_grad():
        model.embed.weight[:, 8:] *= 1e-3
    ids = torch.randint(50, (30, 7))
    split = Split(ids, torch.arange(30) % 3)
    own = ChannelPruned(place(model, "cpu"), Task("words", split, split, split, 3), Settings(images=30, round_to=1))
    groups = {group.name: group for group in own.calibration.graph.groups}
    assert {name: group.units for name, group in groups.items()} == {"embed": 16, "first": 6, "second": 5}
    energy = model.embed.weight.detach().square().sum(0).numpy()
    np.testing.assert_allclose(np.diag(selection_gram(model, groups["embed"], {})), energy, rtol=1e-5)
    assert own.calibration.kept["embed"][8].tolist() == list(range(8))
    assert group_errors(model, own.calibration, groups["embed"], [8])[8] < 1e-5
    # The LSTM's own rows and not the norm's scales; each feature has the rows of four gates.
    rows = [model.first.weight_ih_l0, model.first.weight_hh_l0]
    made = sum(part.detach().abs().sum(1).unflatten(0, (4, 6)).sum(0) for part in rows)
    np.testing.assert_allclose(np.diag(selection_gram(model, groups["first"], {})), made.numpy(), rtol=1e-5)


def test_transposed_convolutions_in_groups_are_judged_by_each_channel_s_own_weights():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    energy = layer.weight.detach().square().sum((2, 3)).unflatten(0, (2, 2)).sum(1).flatten()
    np.testing.assert_allclose(filter_magnitudes(layer, 2), energy.numpy(), rtol=1e-5)
