from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from learners.filter_ranked import FilterRanked, Settings, rank, taylor_scores
from pfray.errors import UnsupportedModel
from pfray.learner.base import Stage
from pfray.models.lenet import lenet
from pfray.models.mobilenet import mobilenet_v1
from pfray.nn.modes import place
from pfray.pruning.channels.importance import filter_magnitudes
from pfray.pruning.channels.keep_ratios import graph_of, kept_counts
from pfray.space import Plan
from pfray.task import Split, Task, example_input
from tests.small import channel_costs
from tests.zoo import Residual, conv, head, randomize

EVERY = {"round_to": 1}


def make_task(shape: tuple[int, ...] = (1, 8, 8), classes: int = 3, samples: int = 40) -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, *shape, generator=generator)
    split = Split(inputs, torch.randint(classes, (samples,), generator=generator))
    return Task("random", split, split.head(20), split.head(20), classes)


def plain() -> nn.Module:
    """Two convolutions with 4 channels each, the first with batch norm."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()
    return randomize(nn.Sequential(*layers, *head(4, 3))).eval()


def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    return place(randomize(mobilenet_v1(num_outputs=3, in_channels=1, width=0.25)).eval(), "cpu")


def scores(model: nn.Module, task: Task, **settings) -> dict[str, np.ndarray]:
    return rank(model, graph_of(model, task).groups, task, Settings(**settings))


def compress(model: nn.Module, task: Task, plan: dict, **settings) -> nn.Module:
    return FilterRanked(model, task, Settings(**EVERY, **settings)).compress(plan).model


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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


def test_of_equal_scores_the_first_units_stay():
    model, task = plain(), make_task()
    nn.init.constant_(model[0].weight, 1.0)
    small = compress(model, task, {"0": 0.5, "3": 1.0})
    assert torch.equal(small[0].bias, model[0].bias[:2])


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


def test_bn_scale_refuses_groups_that_no_batch_norm_scales():
    task = make_task()
    remedy = "no batch norm with a scale in the channel groups {}. Remedy: learner.criterion=l1 or taylor, or these"
    with pytest.raises(UnsupportedModel, match=remedy.format("3")):
        FilterRanked(plain(), task, Settings(criterion="bn_scale")).space()
    with pytest.raises(UnsupportedModel, match=remedy.format("3")):
        FilterRanked(plain(), task, Settings(criterion="bn_scale")).compress({"0": 0.5})
    assert FilterRanked(plain(), task, Settings(criterion="bn_scale", skip=("3",))).space().names == ["0"]
    without = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), head(4, 3))
    with pytest.raises(UnsupportedModel, match=remedy.format("0")):
        FilterRanked(without, task, Settings(criterion="bn_scale")).space()
    digits_like = make_task((1, 32, 32), 10)
    with pytest.raises(UnsupportedModel, match=remedy.format("conv1, conv2, fc1, fc2")):
        FilterRanked(lenet(in_channels=1), digits_like, Settings(criterion="bn_scale")).space()


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
    monkeypatch.setattr("learners.filter_ranked.BATCH", 16)  # 40 samples: the last batch is smaller
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


@pytest.mark.parametrize("criterion", ["l1", "bn_scale", "taylor"])
def test_a_plan_is_met_to_the_channel_and_the_teacher_stays_as_it_is(criterion):
    task, model = make_task((1, 32, 32)), mobilenet()
    before = copy.deepcopy(model.state_dict())
    algorithm = FilterRanked(model, task, Settings(criterion=criterion))
    space = algorithm.space()
    plan = space.decode(np.random.default_rng(0).uniform(size=len(space)))
    small = algorithm.compress(plan).model
    for name, count in kept_counts(graph_of(model, task), plan).items():
        assert small.get_submodule(name).out_channels == count, name
    assert channel_costs(small, example_input(task)) == space.costs(plan)
    finished = algorithm.finish(plan).model
    assert {n: p.shape for n, p in finished.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    assert equal(model.state_dict(), before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.training


def test_iterations_go_down_geometrically_and_else_groups_are_tuned_in_turn():
    plan = {"a": 0.125, "b": 1.0, "c": 0.729}

    def stages(plan: Plan, **settings) -> list[Stage]:
        return FilterRanked(plain(), make_task(), Settings(**settings)).stages(plan)

    found = stages(plan, iterations=3, iteration_epochs=4)
    assert [stage.epochs for stage in found] == [4, 4]
    assert [stage.plan["a"] for stage in found] == pytest.approx([0.5, 0.25])
    assert [stage.plan["b"] for stage in found] == [1.0, 1.0]
    assert [stage.plan["c"] for stage in found] == pytest.approx([0.9, 0.81])
    assert stages(plan) == []
    assert stages({"a": 1.0}, iterations=3) == []
    assert stages(plan, group_size=1) == [Stage({"a": 0.125, "b": 1.0, "c": 1.0}, 1)]


def test_a_later_stage_ranks_what_the_earlier_one_left():
    model = plain()
    algorithm = FilterRanked(model, make_task(), Settings(**EVERY, iterations=2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([4.0, 3.0, 2.0, 1.0]).view(4, 1, 1, 1).expand(4, 1, 3, 3))
    plan = {"0": 0.25, "3": 0.25}
    (milder,) = algorithm.stages(plan)
    assert milder.plan == {"0": 0.5, "3": 0.5}
    first = algorithm.finish(milder.plan).model
    assert first[0].weight[:, 0, 0, 0].tolist() == [4.0, 3.0]
    with torch.no_grad():
        first[0].weight[0] = 0.5  # as if a training had moved it
    second = algorithm.finish(plan, first)
    assert second.model[0].weight[:, 0, 0, 0].tolist() == [3.0]
    algorithm.rebuild(second.structure).load_state_dict(second.model.state_dict())
    # Where a group has one channel left it is no group any more, and the rest is done all the same.
    again = algorithm.finish(plan, algorithm.finish({"0": 0.25, "3": 1.0}).model).model
    assert (again[0].out_channels, again[3].out_channels) == (1, 1)


def test_a_group_that_is_skipped_stays_whole_in_every_stage():
    algorithm = FilterRanked(plain(), make_task(), Settings(**EVERY, skip=("3",)))
    small = algorithm.finish(dict.fromkeys(algorithm.space().names, 0.5)).model
    assert (small[0].out_channels, small[3].out_channels) == (2, 4)


def test_a_finished_models_batch_norms_are_estimated_again_before_the_training():
    model, task = plain(), make_task()
    small = FilterRanked(model, task, Settings(**EVERY)).finish({"0": 0.5, "3": 1.0}).model
    seen = small[0](task.train.inputs)
    assert torch.allclose(small[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert not torch.allclose(model[1].running_mean, model[0](task.train.inputs).mean((0, 2, 3)), atol=1e-2)


def test_an_error_curve_is_the_share_of_the_scores_that_goes():
    model, task = plain(), make_task()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 4.0, 2.0, 3.0]).view(4, 1, 1, 1).expand(4, 1, 3, 3))
    curve = FilterRanked(model, task, Settings(**EVERY)).error_curves()["0"]
    # 1, 2, 3 and 4 channels at positions 0, 1/3, 2/3 and 1; in between the nearest count.
    assert [curve[round(64 * third / 3)] for third in range(4)] == pytest.approx([0.6, 0.3, 0.1, 0.0])
    assert set(np.round(curve, 12)) == {0.6, 0.3, 0.1, 0.0}


def test_scores_that_are_not_finite_are_refused():
    model, task = plain(), make_task()
    graph_of(model, task)
    model[3].weight.data[1] = torch.nan
    for criterion, group in (("l1", "3"), ("taylor", "0")):
        with pytest.raises(UnsupportedModel, match=f"channel group {group} has scores by {criterion} that are not fin"):
            scores(model, task, criterion=criterion)


def test_settings_that_make_no_sense_are_refused():
    check = TypeAdapter(Settings).validate_python
    with pytest.raises(ValidationError, match="Input should be 'l1', 'bn_scale' or 'taylor'"):
        check({"criterion": "l2"})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        check({"iterations": 0})
    with pytest.raises(ValidationError, match=r"iterations is 3 and group_size is 2; both prune in rounds. Remedy"):
        check({"iterations": 3, "group_size": 2})
    with pytest.raises(UnsupportedModel, match=r"no channel group 'conv9'. Allowed: 0, 3"):
        FilterRanked(plain(), make_task(), Settings(skip=("conv9",))).space()


def test_taylor_of_frozen_layers_is_the_same():
    model, task = plain(), make_task()
    groups = graph_of(model, task).groups
    before = taylor_scores(model, groups, task, 40)
    model.requires_grad_(False)
    after = taylor_scores(model, groups, task, 40)
    assert {name: own.tolist() for name, own in after.items()} == {name: own.tolist() for name, own in before.items()}
    assert not any(p.requires_grad for p in model.parameters())
