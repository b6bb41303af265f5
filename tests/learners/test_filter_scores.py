"""The scores of the ranking learner: magnitudes, scales of batch norms, and Taylor's first order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.errors import UnsupportedModel
from pfray.pruning.channels.importance import filter_magnitudes
from pfray.pruning.channels.keep_ratios import graph_of
from pfray.pruning.channels.scores import taylor_scores
from tests.learners.ranked import compress, make_task, plain, scores
from tests.zoo import Residual, conv, head


def test_l1_is_the_filters_magnitude_and_the_largest_filters_stay_as_they_are():
    model, task = plain(), make_task()
    with torch.no_grad():
        # Magnitudes 9, 45, 18 and 36: negative weights count, large biases do not.
        model[0].weight.copy_(torch.tensor([1.0, -5.0, 2.0, -4.0]).view(4, 1, 1, 1).expand(4, 1, 3, 3))
        model[0].bias.copy_(torch.tensor([100.0, 0.0, 0.0, 0.0]))
    assert scores(model, task)["0"].tolist() == [9, 45, 18, 36]
    small = compress(model, task, {"0": 0.5, "3": 1.0})
    assert torch.equal(small[0].weight, model[0].weight[[1, 3]])
    assert torch.equal(small[1].running_mean, model[1].running_mean[[1, 3]])
    assert torch.equal(small[3].weight, model[3].weight[:, [1, 3]])
    assert torch.equal(compress(model, task, {"0": 0.75, "3": 1.0})[0].weight, model[0].weight[[1, 2, 3]])


def test_l1_adds_all_layers_that_make_a_unit_up():
    task = make_task()
    body, shortcut = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 1)
    model = nn.Sequential(Residual(body, shortcut), head(4, 3))
    with torch.no_grad():
        body.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1).expand(4, 1, 3, 3))
        shortcut.weight.copy_(torch.tensor([-90.0, 10.0, 0.0, 50.0]).view(4, 1, 1, 1))
    assert [own.tolist() for own in scores(model, task).values()] == [[99, 28, 27, 86]]


def test_filter_magnitudes_follow_the_layout_of_each_kind_of_layer():
    linear = nn.Linear(2, 3)
    linear.weight.data = torch.tensor([[1.0, -2.0], [0.0, 4.0], [5.0, 6.0]])
    assert filter_magnitudes(linear).tolist() == [3, 4, 11]
    transposed = nn.ConvTranspose2d(2, 3, 1)
    transposed.weight.data = torch.tensor([[1.0, 2.0, 3.0], [-10.0, 20.0, 30.0]]).view(2, 3, 1, 1)
    assert filter_magnitudes(transposed).tolist() == [11, 22, 33]
    # Inputs 0 and 1 make outputs 0 and 1; inputs 2 and 3 make outputs 2 and 3.
    grouped = nn.ConvTranspose2d(4, 4, 1, groups=2)
    grouped.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0], [30.0, 40.0]]).view(4, 2, 1, 1)
    assert filter_magnitudes(grouped).tolist() == [4, 6, 40, 60]
    depthwise = nn.Conv1d(2, 2, 2, groups=2)
    depthwise.weight.data = torch.tensor([[[1.0, -1.0]], [[2.0, 3.0]]])
    assert filter_magnitudes(depthwise).tolist() == [2, 5]
    embedding = nn.Embedding(2, 3)
    embedding.weight.data = torch.tensor([[1.0, 2.0, -3.0], [4.0, 5.0, 6.0]])
    assert filter_magnitudes(embedding).tolist() == [5, 7, 9]


def test_bn_scale_is_the_scales_magnitude_over_all_batch_norms_of_a_unit():
    task = make_task()
    model = nn.Sequential(conv(1, 4), conv(4, 4, groups=4), head(4, 3))
    model[0][1].weight.data = torch.tensor([0.1, -3.0, 2.0, 0.5])
    assert scores(model, task, criterion="bn_scale") == {"0.0": pytest.approx([1.1, 4.0, 3.0, 1.5])}
    model[1][1].weight.data = torch.tensor([5.0, 0.0, 0.0, -0.25])
    assert scores(model, task, criterion="bn_scale") == {"0.0": pytest.approx([5.1, 3.0, 2.0, 0.75])}
    small = compress(model, task, {"0.0": 0.5}, criterion="bn_scale")
    assert torch.equal(small[0][0].weight, model[0][0].weight[[0, 1]])


def test_taylor_equals_a_gradient_written_out_for_two_linear_layers():
    task = make_task((5,))
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x, y = task.train.inputs.double(), task.train.targets
    # Cross-entropy's gradient at a sample's outputs is softmax - onehot; at what the layer reads it is W^T of that.
    z = (x @ model[0].weight.T + model[0].bias).clamp(min=0)
    at_outputs = (z @ model[2].weight.T + model[2].bias).softmax(1) - F.one_hot(y, 3)
    expected = (z * (at_outputs @ model[2].weight)).abs().mean(0)
    expected = expected / expected.square().sum().sqrt()
    found = scores(model.float(), task, criterion="taylor")["0"]
    assert found == pytest.approx(expected.detach().numpy(), rel=1e-4)
    assert (found > 0.01).all()
    assert scores(model, task, criterion="taylor", images=3)["0"] != pytest.approx(found, rel=1e-2)


def test_taylor_takes_each_samples_mean_over_positions_and_then_the_mean_of_magnitudes(monkeypatch):
    model, task = plain(), make_task()
    monkeypatch.setattr("pfray.pruning.channels.scores.BATCH", 16)  # 40 samples: the last batch is smaller
    totals: list[Tensor] = [torch.zeros(4), torch.zeros(4)]
    for x, y in zip(task.train.inputs, task.train.targets, strict=True):
        first = model[:3](x[None])
        second = model[3:5](first)
        loss = F.cross_entropy(model[5:](second), y[None])
        # The head's linear layer reads the pooled map: one position.
        maps = first, model[5](second)
        pooled_loss = F.cross_entropy(model[6:](maps[1]), y[None])
        gradients = (*torch.autograd.grad(loss, first, retain_graph=True), *torch.autograd.grad(pooled_loss, maps[1]))
        for total, own, gradient in zip(totals, maps, gradients, strict=True):
            total += (own * gradient).mean((0, 2, 3)).abs().detach()
    expected = [(total / total.square().sum().sqrt()).numpy() for total in totals]
    found = scores(model, task, criterion="taylor")
    assert found["0"] == pytest.approx(expected[0], rel=1e-4)
    assert found["3"] == pytest.approx(expected[1], rel=1e-4)


def test_taylor_counts_a_flattened_map_as_one_unit_of_many_positions():
    task = make_task((1, 4, 4))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).eval()
    total = torch.zeros(3)
    for x, y in zip(task.train.inputs, task.train.targets, strict=True):
        z = model[:2](x[None])
        (gradient,) = torch.autograd.grad(F.cross_entropy(model[2:](z), y[None]), z)
        total += (z * gradient).mean((0, 2, 3)).abs().detach()
    assert scores(model, task, criterion="taylor")["0"] == pytest.approx((total / total.norm()).numpy(), rel=1e-4)


class Tokens(nn.Module):
    """``(N, T, 5)`` to ``(N, 3)``: the mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x))).mean(1)


def test_taylor_takes_the_tokens_of_a_linear_layer_for_positions():
    task = make_task((6, 5))
    torch.manual_seed(0)
    model = Tokens()
    total = torch.zeros(4)
    for x, y in zip(task.train.inputs, task.train.targets, strict=True):
        z = F.relu(model.fc1(x[None]))
        (gradient,) = torch.autograd.grad(F.cross_entropy(model.fc2(z).mean(1), y[None]), z)
        total += (z * gradient).mean((0, 1)).abs().detach()
    assert scores(model, task, criterion="taylor")["fc1"] == pytest.approx((total / total.norm()).numpy(), rel=1e-4)


class StepsFirst(nn.Module):
    """``(N, T, 5)`` to ``(N, 3)``, with the steps in front in between."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.before, self.rnn = nn.Linear(5, 4), nn.GRU(4, 6, batch_first=batch_first)
        self.fc1, self.fc2 = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rnn(self.before(x if self.batch_first else x.transpose(0, 1)))[0]
        return self.fc2(F.relu(self.fc1(x))).mean(1 if self.batch_first else 0)


@pytest.mark.parametrize("steps", [6, 40])
def test_taylor_takes_no_steps_for_samples(steps):
    task, found = make_task((steps, 5)), []
    for batch_first in (True, False):
        torch.manual_seed(0)
        found.append(scores(StepsFirst(batch_first).eval(), task, criterion="taylor"))
    assert found[0].keys() == {"before", "rnn", "fc1"}
    for name in ("before", "rnn", "fc1") if steps != 40 else ("before",):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4), name


def test_taylor_gives_every_layer_that_reads_a_unit_the_same_weight():
    task = make_task()
    torch.manual_seed(0)
    stem = conv(1, 4)
    model = nn.Sequential(stem, Residual(conv(4, 6, 1), nn.Conv2d(4, 6, 1)), head(6, 3)).eval()
    found = scores(model, task, criterion="taylor")
    # The stem's maps are read twice and are the same: two layers with a norm of 1 each.
    assert np.linalg.norm(found["0.0"]) == pytest.approx(2.0)
    assert [np.linalg.norm(own) for name, own in found.items() if name != "0.0"] == pytest.approx([1.0])


def test_scores_that_are_not_finite_are_refused():
    model, task = plain(), make_task()
    graph_of(model, task)
    model[3].weight.data[1] = torch.nan
    for criterion, group in (("l1", "3"), ("taylor", "0")):
        with pytest.raises(UnsupportedModel, match=f"channel group {group} has scores by {criterion} that are not fin"):
            scores(model, task, criterion=criterion)


def test_taylor_of_frozen_layers_is_the_same():
    model, task = plain(), make_task()
    groups = graph_of(model, task).groups
    before = taylor_scores(model, groups, task, 40)
    model.requires_grad_(False)
    after = taylor_scores(model, groups, task, 40)
    assert {name: own.tolist() for name, own in after.items()} == {name: own.tolist() for name, own in before.items()}
    assert not any(p.requires_grad for p in model.parameters())
