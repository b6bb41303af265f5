"""Extra losses inside a network: where they look, their heads, and the training on them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pfray.pruning.channels.keep_ratios import graph_of
from pfray.pruning.discrimination.auxiliary_losses import Head, Stage, divide, make_heads, observe, tune
from pfray.pruning.discrimination.greedy_selection import calibration
from pfray.training.settings import Training
from tests.small import chain, informative, make_task, passing_on, state
from tests.zoo import Residual, conv, head

CPU = torch.device("cpu")


def test_the_head_is_batch_norm_relu_mean_and_a_linear_layer():
    own = Head(torch.tensor([1.0, 1.0, 0.0]), 2).eval()
    own.norm.running_mean = torch.tensor([1.0, 0.0, 0.0])
    own.norm.running_var = torch.tensor([4.0, 1.0, 1.0]) - own.norm.eps
    with torch.no_grad():
        own.theta.copy_(torch.tensor([[1.0, 0.0, 9.0], [2.0, 3.0, 9.0]]))
        own.bias.copy_(torch.tensor([0.0, 10.0]))
    maps = torch.tensor([[[5.0, -9.0], [2.0, 4.0], [7.0, 7.0]]])
    # (5 - 1) / 2 = 2 and below 0: mean 1. 2 and 4: mean 3. The third channel is removed and not seen.
    assert own(maps)[0].tolist() == pytest.approx([1.0, 2 + 9 + 10], rel=1e-5)


def test_a_new_head_tells_the_classes_from_features_that_do():
    task, model = informative(), passing_on()
    groups = graph_of(model, task).groups
    made = make_heads(model, [Stage(groups, "2")], {}, task)["2"]
    outputs, targets = [], []
    for inputs, own in calibration(task, 240, CPU):
        maps = model[2](model[:2](inputs)).flatten(2)
        outputs.append(made(maps))
        targets.append(own)
    assert (torch.cat(outputs).argmax(1) == torch.cat(targets)).float().mean() > 0.9
    assert not made.training
    assert make_heads(model, [Stage(groups, None)], {}, task) == {}
    # Removed outputs are not seen.
    seen = make_heads(model, [Stage(groups, "2")], {("2", "out"): np.array([1, 6])}, task)["2"].alive
    assert seen.tolist() == [0, 1, 0, 0, 0, 0, 1, 0]


def test_stages_divide_the_groups_evenly_and_look_at_what_the_last_group_is_read_by():
    task, model = make_task(), chain()
    groups = graph_of(model, task).groups
    assert [group.name for group in groups] == ["0.0", "1.0", "2.0", "3.0"]
    # The last layer is the one that makes the outputs: its loss is the task's.
    assert [([g.name for g in s.groups], s.layer) for s in divide(model, groups, 3, task)] == [
        (["0.0"], "1.0"), (["1.0"], "2.0"), (["2.0"], "3.0"), (["3.0"], None)]  # fmt: skip
    assert [([g.name for g in s.groups], s.layer) for s in divide(model, groups, 1, task)] == [
        (["0.0", "1.0"], "2.0"), (["2.0", "3.0"], None)]  # fmt: skip
    assert [([g.name for g in s.groups], s.layer) for s in divide(model, groups[:2], 9, task)] == [
        (["0.0"], "1.0"), (["1.0"], None)]  # fmt: skip
    assert [s.layer for s in divide(model, groups, 0, task)] == [None]
    assert [s.layer for s in divide(model, [groups[3], groups[0]], 1, task)] == [None, None]
    assert divide(model, [], 3, task) == []


def test_a_stage_of_parallel_branches_looks_where_they_have_met():
    task = make_task()
    torch.manual_seed(0)
    branches = Residual(nn.Sequential(conv(4, 6), conv(6, 4)), nn.Sequential(conv(4, 5), conv(5, 4)))
    model = nn.Sequential(conv(2, 4), branches, conv(4, 7), head(7, 3)).eval()
    groups = graph_of(model, task).groups
    both = [group for group in groups if group.name in ("1.body.0.0", "1.shortcut.0.0")]
    assert len(both) == 2
    rest = [group for group in groups if group.name == "2.0"]
    # Neither branch's last layer depends on the other branch; the next convolution does on both.
    stages = divide(model, [*both, *rest, *rest], 1, task)
    assert stages[0].layer == "2.0"


def test_tuning_trains_model_and_head_on_both_losses_and_leaves_no_hook():
    task, model = informative(), passing_on()
    groups = graph_of(model, task).groups
    stage = Stage(groups, "2")
    own = make_heads(model, [stage], {}, task)["2"]
    before = copy.deepcopy(own.state_dict())
    held: list[int] = []
    nn.init.zeros_(model[4][2].weight)  # the model's own loss then has no gradient before the head
    nn.init.zeros_(model[4][2].bias)
    frozen = model[4][2].requires_grad_(False)
    start = state(model)
    tune(model, stage, own, task, Training(lr=0.05, batch_size=40, weight_decay=0), 4, 0, held.append)
    assert held == [0, 1, 2, 3, 4]
    assert not torch.equal(model[0].weight, start["0.weight"])  # by the extra loss alone
    assert torch.equal(frozen.weight, start["4.2.weight"])
    assert not torch.equal(own.theta, before["theta"])
    assert not model.training
    assert not model[2]._forward_hooks
    assert all(p.grad is None for p in [*model.parameters(), *own.parameters()])


def test_observing_stops_early_and_gives_what_the_layers_gave():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1), nn.Identity())
    ran = []
    model[3].register_forward_hook(lambda *_: ran.append(1))
    inputs = torch.randn(2, 2, 4, 4)
    seen, outputs = observe(model, ["2", "0"], inputs)
    assert list(seen) == ["0", "2"]
    assert outputs is None
    assert not ran
    assert torch.equal(seen["0"], model[0](inputs))  # before the ReLU that works in place
    seen, outputs = observe(model, ["0"], inputs, to_the_end=True)
    assert torch.equal(outputs, model(inputs))
    assert not model[0]._forward_hooks
