"""Every channel learner on attention heads: the head that does nothing goes first, whatever the module is."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learners import channel_pruned, dis_chn_pruned, filter_ranked
from pfray.measure.macs import count_macs
from pfray.pruning.channels.keep_ratios import graph_of
from pfray.task import Split, Task, example_input

TOKENS, WIDTH, HEADS, IDLE = 6, 12, 4, 2


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, WIDTH // HEADS
        self.qkv, self.out_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))



class Network(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm, self.attn, self.fc1 = nn.LayerNorm(WIDTH), attention, nn.Linear(WIDTH, 16)
        self.fc2, self.head = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + (self.attn(y, y, y)[0] if isinstance(self.attn, nn.MultiheadAttention) else self.attn(y))
        return self.head((x + self.fc2(F.relu(self.fc1(self.norm(x))))).mean(1))


@pytest.fixture(scope="module")
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, TOKENS, WIDTH, generator=generator)
    split = Split(inputs, torch.randint(3, (64,), generator=generator))
    return Task("random", split, split.head(20), split.head(20), 3)


@pytest.fixture(params=["by_hand", "of_torch"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    """Head ``IDLE`` is read with weights of 0, and made with small ones."""
    torch.manual_seed(0)
    attention: Any = ByHand() if request.param == "by_hand" else nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    network = Network(attention).eval()
    rows = torch.arange(3)[:, None] * WIDTH + IDLE * 3 + torch.arange(3)
    with torch.no_grad():
        attention.out_proj.weight[:, IDLE * 3 : IDLE * 3 + 3] = 0.0
        (attention.qkv.weight if request.param == "by_hand" else attention.in_proj_weight)[rows.flatten()] *= 1e-3
    return network


LEARNERS = {
    "reconstruction": lambda model, task: channel_pruned.ChannelPruned(
        model, task, channel_pruned.Settings(images=64, positions=6, round_to=1)
    ),
    "l1": lambda model, task: filter_ranked.FilterRanked(model, task, filter_ranked.Settings(round_to=1)),
    "taylor": lambda model, task: filter_ranked.FilterRanked(
        model, task, filter_ranked.Settings(criterion="taylor", round_to=1)
    ),
    "discriminative": lambda model, task: dis_chn_pruned.DisChnPruned(
        model, task, dis_chn_pruned.Settings(losses=1, steps=2, images=32, round_to=1)
    ),
}


@pytest.mark.parametrize("name", ["reconstruction", "l1", "taylor"])
def test_a_head_without_effect_goes_first(name, model, task):
    learner = LEARNERS[name](model, task)
    plan = {"attn": 3 / 4, "fc1": 1.0}
    pruned: Any = learner.compress(plan).model.eval()
    x = task.train.inputs
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), model(x), rtol=0, atol=1e-4)
    assert pruned.attn.num_heads == 3
    assert learner.error_curves()["attn"][-1] == 0
    # All that remains of three heads is not nothing.
    assert learner.error_curves()["attn"][0] > 0.1


@pytest.mark.parametrize("name", LEARNERS)
def test_a_plan_is_met_exactly_and_rebuilt_from_counts(name, model, task):
    learner = LEARNERS[name](model, task)
    space = learner.space()
    assert [knob.name for knob in space.knobs] == ["attn", "fc1"]
    assert space.knobs[0].choices == (0.25, 0.5, 0.75, 1.0)
    whole = space.costs({"attn": 1.0, "fc1": 1.0})["macs"]
    plan = space.uniform({"macs": whole / 2})
    for made in (learner.compress(plan), learner.finish(plan)):
        found = count_macs(made.model, example_input(task))[0]
        assert found == space.costs(plan)["macs"]
        assert 0.35 * whole < found <= 0.5 * whole
        made.model.train()
        made.model(task.train.inputs).sum().backward()
    structure = learner.finish(plan).structure
    again = learner.rebuild(structure)
    again.load_state_dict(made.model.state_dict())
    assert again.attn.num_heads == structure["attn"]
    x = task.train.inputs[:4]
    torch.testing.assert_close(again.eval()(x), made.model.eval()(x))


def test_reconstruction_in_order_refits_the_projection(model, task, caplog):
    """The projection of fewer heads makes up for those that went, in torch's own module too."""
    settings = channel_pruned.Settings(images=64, positions=6, round_to=1)
    learner = channel_pruned.ChannelPruned(model, task, settings)
    plan = {"attn": 0.5, "fc1": 1.0}
    pruned = learner.finish(plan).model.eval()
    assert not caplog.records
    plain = copy.deepcopy(model)
    kept = learner.calibration.kept["attn"][2]
    channel_pruned.prune(plain, graph_of(model, task), {"attn": kept})
    x = task.train.inputs
    with torch.no_grad():
        wanted = model(x)
        errors = [float((each(x) - wanted).square().sum()) for each in (pruned, plain)]
    assert errors[0] < 0.8 * errors[1]
    assert np.isfinite(errors).all()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.rnn = nn.Linear(WIDTH, 6), nn.GRU(6, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.before(x).relu())[0].mean(1))


@pytest.mark.parametrize("name", LEARNERS)
def test_recurrent_layers_are_pruned_by_every_learner(name, task):
    torch.manual_seed(0)
    model = Recurrent().eval()
    learner = LEARNERS[name](model, task)
    space = learner.space()
    assert [knob.name for knob in space.knobs] == ["before", "rnn"]
    plan = space.uniform({"macs": space.costs({"before": 1.0, "rnn": 1.0})["macs"] / 2})
    x = task.train.inputs[:4]
    for made in (learner.compress(plan), learner.finish(plan)):
        assert count_macs(made.model, example_input(task))[0] == space.costs(plan)["macs"]
    again = learner.rebuild(made.structure)
    again.load_state_dict(made.model.state_dict())
    torch.testing.assert_close(again.eval()(x), made.model.eval()(x))
    assert all(0 <= curve[0] <= 1 and curve[-1] == 0 for curve in learner.error_curves().values())
    # Each ranking tells units apart.
    assert all(curve[0] > curve[len(curve) // 2] > 0 for curve in learner.error_curves().values())
