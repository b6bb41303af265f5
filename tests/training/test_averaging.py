"""Averaged weights: both averages by hand, on a learner's constraint, and continued from a checkpoint."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learners import non_uniform_quant, uniform_quant, weight_sparse
from learners.non_uniform_quant import NonUniformQuant
from learners.uniform_quant import UniformQuant
from learners.weight_sparse import WeightSparse
from pfray.learner.context import Context, Recipe
from pfray.nn.modes import place
from pfray.quantization.qparams import QParams, attach
from pfray.quantization.straight_through import StraightThrough
from pfray.training.averaging import Average, average_of, newest_share
from pfray.training.batch_norm import BN_IMAGES, reestimate_batch_norm
from pfray.training.loop import Shard, fit
from pfray.training.settings import Finetune, Training
from pfray.workflow.worker import TrainingSpec, train_candidate
from tests.small import chain, make_task
from tests.small import equal as same
from tests.training.toy import equal, net

QUICK = Training(epochs=3, lr=0.05, batch_size=10)


def test_the_newest_weights_have_the_share_worked_by_hand():
    # 1 - 2/11, 1 - 3/12, 1 - 11/20; at 8,990 steps 1 - 8991/9000 is a thousandth, and no less later.
    assert [newest_share("ema", step, 10_000) for step in (1, 2, 10)] == pytest.approx([9 / 11, 9 / 12, 9 / 20])
    assert [newest_share("ema", step, 10_000) for step in (8_990, 9_500)] == pytest.approx([0.001, 0.001])
    # The last quarter of 12 steps are three.
    assert [newest_share(0.25, step, 12) for step in (9, 10, 11, 12)] == pytest.approx([0, 1, 1 / 2, 1 / 3])
    assert [newest_share(1.0, step, 3) for step in (1, 2, 3)] == pytest.approx([1, 1 / 2, 1 / 3])
    # A share of less than a step is the last one.
    assert [newest_share(0.01, step, 12) for step in (11, 12)] == [0, 1]


@pytest.mark.parametrize(("kind", "expected"), [
    # 2/11 1 + 9/11 2, then 3/12 of that + 9/12 4, 4/13 of that + 9/13 8, 5/14 of that + 9/14 16.
    ("ema", [1.818182, 3.454545, 6.601399, 12.643357]),
    (0.5, [1, 1, 8, 12]),
    (1.0, [2, 3, 14 / 3, 7.5]),
])  # fmt: skip
def test_the_average_of_a_short_sequence(kind, expected):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average, seen = Average(model, None, kind, 4), []
    for step, value in enumerate((2.0, 4.0, 8.0, 16.0), 1):
        nn.init.constant_(model.weight, value)
        average.update(step)
        seen.append(average.state_dict()["model.weight"].item())
    assert seen == pytest.approx(expected)


def test_no_average_is_kept_without_the_setting():
    assert average_of(net(), None, "none", 10) is None


def test_a_training_ends_with_the_mean_of_its_last_weights_and_fresh_batch_norms(task):
    seen: list[dict[str, Tensor]] = []
    reported: list[dict[str, Tensor]] = []
    model, plain = net(), net()
    fit(plain, task, QUICK, seed=0, hook=lambda step: seen.append(copy.deepcopy(dict(plain.named_parameters()))))
    averaging = QUICK.model_copy(update={"average": 0.25})
    fit(model, task, averaging, seed=0, on_epoch=lambda *_: reported.append(copy.deepcopy(model.state_dict())))
    for name, parameter in model.named_parameters():
        mean = torch.stack([weights[name] for weights in seen[-3:]]).mean(0)
        assert torch.allclose(parameter, mean, atol=1e-6)
        assert not torch.equal(parameter, plain.state_dict()[name])
    expected = copy.deepcopy(model)
    reestimate_batch_norm(expected, task, BN_IMAGES, "float32")
    assert equal(model, expected)
    assert not torch.allclose(model[1].running_mean, plain[1].running_mean, atol=1e-4)
    # The last epoch's report, and so its checkpoint, has them already; the epochs before have their own.
    assert same(reported[-1], model.state_dict())
    assert torch.equal(reported[0]["0.weight"], seen[4]["0.weight"])


def test_norms_that_the_hook_has_frozen_keep_their_statistics(task):
    model = net()
    kept = copy.deepcopy(model[1])
    fit(model, task, QUICK.model_copy(update={"average": "ema"}), seed=0, hook=lambda step: model[1].eval() and None)
    assert torch.equal(model[1].running_mean, kept.running_mean)
    assert not torch.equal(model[1].weight, kept.weight)


def quantized(latent: list[float]) -> tuple[nn.Linear, Tensor]:
    """A layer on the levels 0, 1, 2, 3, and its float weight."""
    layer = nn.Linear(len(latent), 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([latent]))
    kept = layer.weight.detach().clone()
    attach(layer, QParams(2, torch.tensor([0.0]), torch.tensor([1.0])))
    return layer, kept


def test_float_weights_are_averaged_and_then_quantized():
    layer, latent = quantized([1.25, 0.0])
    hook = StraightThrough({"fc": layer}, {"fc": latent})
    average = Average(nn.Sequential(layer), hook, 1.0, 3)
    hook(0)
    for step, change in enumerate(([0.125, 0.5], [0.0, 0.5], [0.5, 0.25]), 1):
        with torch.no_grad():
            layer.weight += torch.tensor([change])
        hook(step)
        average.update(step)
    # Float weights 1.375, 1.375, 1.875 and 0.5, 1, 1.25; shown were 1, 1, 2 and 0, 1, 1.
    assert average.state_dict()["hook.fc"][0].tolist() == pytest.approx([4.625 / 3, 2.75 / 3])
    average.finish(make_task((2,)), "float32")
    assert latent[0].tolist() == pytest.approx([4.625 / 3, 2.75 / 3])
    assert layer.weight.tolist() == [[2.0, 1.0]]


LEARNERS: dict[str, tuple[Any, Any]] = {
    "sparse": (WeightSparse, weight_sparse.Settings(interval=2)),
    "sparse to the end": (WeightSparse, weight_sparse.Settings(end=1.0)),
    "even levels": (UniformQuant, uniform_quant.Settings(activation_bits=4, images=60)),
    "moving ranges": (UniformQuant, uniform_quant.Settings(interval=3)),
    **{tune: (NonUniformQuant, non_uniform_quant.Settings(tune=tune)) for tune in ("weights", "clusters", "both")},
}


@pytest.mark.parametrize("average", ["ema", 0.5])
@pytest.mark.parametrize("learner", LEARNERS)
def test_averaged_weights_keep_the_plan_and_a_continued_training_gives_the_same_ones(tmp_path, learner, average):
    kind, settings = LEARNERS[learner]
    teacher, task = place(chain(), "cpu"), make_task()
    space = kind(teacher, task, settings).space()
    plan = dict.fromkeys(space.names, 0.75 if kind is WeightSparse else 2)
    training = Finetune(epochs=4, lr=0.05, batch_size=15, warmup_epochs=0, average=average)
    spec = TrainingSpec(Recipe(kind, settings, training).candidate(plan), Context(task, teacher), tmp_path)
    states: dict[int, dict[str, Any]] = {}

    def train(checkpoint: dict[str, Any] | None) -> dict[str, Tensor]:
        def save(state: dict[str, Any]) -> None:
            states.setdefault(state["epoch"], copy.deepcopy(state))

        return train_candidate(spec, Shard(), torch.device("cpu"), copy.deepcopy(checkpoint), save).state_dict()

    whole = train(None)
    assert same(whole, states[4]["model"])
    for epoch in (1, 3, 4):
        assert same(train(states[epoch]), whole)
    without = copy.deepcopy(states[3])
    without["average"] = {name: torch.zeros_like(tensor) for name, tensor in without["average"].items()}
    assert not same(train(without), whole)  # what a checkpoint kept of the average is needed for that
    for name in plan:
        weight = whole[f"{name}.weight"]
        if kind is WeightSparse:
            assert int((weight == 0).sum()) == round(0.75 * weight.numel())
        else:
            buckets = weight.flatten(1) if kind is UniformQuant else weight.flatten()[None]
            assert all(len(bucket.unique()) <= 4 for bucket in buckets)
