from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from learners.filter_ranked import FilterRanked, Settings
from pfray.errors import UnsupportedModel
from pfray.learner.base import Stage
from pfray.models.lenet import lenet
from pfray.models.mobilenet import mobilenet_v1
from pfray.nn.modes import place
from pfray.pruning.channels.keep_ratios import graph_of, kept_counts
from pfray.space import Plan
from pfray.task import example_input
from tests.learners.ranked import EVERY, compress, make_task, plain
from tests.small import channel_costs, equal
from tests.zoo import head, randomize


def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    return place(randomize(mobilenet_v1(num_outputs=3, in_channels=1, width=0.25)).eval(), "cpu")


def test_of_equal_scores_the_first_units_stay():
    model, task = plain(), make_task()
    nn.init.constant_(model[0].weight, 1.0)
    small = compress(model, task, {"0": 0.5, "3": 1.0})
    assert torch.equal(small[0].bias, model[0].bias[:2])


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
