"""What channel learners share: the counts they may keep, exact costs, stages, and what they refuse."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pfray.config.registry import find_class
from pfray.errors import ConfigError, InfeasibleTarget, UnsupportedModel
from pfray.learner.base import Algorithm, Stage
from pfray.pruning.channels.dependency import Cut
from pfray.pruning.channels.graph import ChannelGraph, ChannelGroup, channel_graph
from pfray.pruning.channels.keep_ratios import (
    ChannelSettings,
    allowed_counts,
    channel_space,
    error_curves,
    graph_of,
    group_plans,
    groups_left,
    kept_counts,
    searched_groups,
    with_counts,
)
from pfray.pruning.channels.prune import kept_positions, prune
from pfray.search.allocate import allocate_plan
from pfray.task import Split, Task
from pfray.units import number_text
from tests.small import channel_costs
from tests.zoo import ZOO


def a_group(units: int, channels: int = 1) -> ChannelGroup:
    index = np.arange(units * channels).reshape(channels, units).T
    return ChannelGroup("g", units, (Cut("g", "out", index, units * channels, "CONV"),), 1, 1)


def image_task(shape: tuple[int, ...]) -> Task:
    split = Split(torch.randn(4, *shape), torch.zeros(4, dtype=torch.int64))
    return Task("noise", split, split, split, num_outputs=2)


@pytest.mark.parametrize(("units", "round_to", "counts"), [
    (64, 8, [8, 16, 24, 32, 40, 48, 56, 64]),
    (32, 8, [8, 16, 24, 32]),
    (31, 8, [4, 8, 12, 16, 20, 24, 28, 31]),
    (16, 8, [4, 8, 12, 16]),
    (13, 8, [2, 4, 6, 8, 10, 12, 13]),
    (10, 8, [2, 4, 6, 8, 10]),
    (7, 8, [1, 2, 3, 4, 5, 6, 7]),
    (1, 8, [1]),
    (40, 6, [6, 12, 18, 24, 30, 36, 40]),
    (5, 1, [1, 2, 3, 4, 5]),
])  # fmt: skip
def test_counts_are_multiples_that_leave_at_least_four_to_choose_from(units, round_to, counts):
    assert allowed_counts(a_group(units), round_to) == counts


def test_units_of_several_channels_are_rounded_by_their_channels():
    # 16 units of 4 channels are 64 channels: multiples of 8 channels are those of 2 units.
    assert allowed_counts(a_group(16, 4), 8) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert allowed_counts(a_group(3, 16), 8) == [1, 2, 3]


@pytest.mark.parametrize(("units", "min_keep", "counts"), [
    (64, 0.25, [16, 24, 32, 40, 48, 56, 64]),
    (64, 0.26, [24, 32, 40, 48, 56, 64]),
    (10, 0.7, [8, 10]),
    (10, 0.8, [8, 10]),
    (10, 0.81, [10]),
])  # fmt: skip
def test_the_least_share_that_is_kept_is_rounded_up_to_an_allowed_count(units, min_keep, counts):
    assert allowed_counts(a_group(units), 8, min_keep) == counts


@pytest.fixture(scope="module", params=["resnext", "Plain", "densenet"])
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, ChannelGraph]:
    model, (example,) = ZOO[request.param]()
    return model, example, channel_graph(model, example)


def test_costs_are_those_that_are_measured_on_the_pruned_model(network):
    model, example, graph = network
    space = channel_space(graph, ChannelSettings(round_to=2, skip=(graph.groups[1].name,)))
    assert space.names == [group.name for group in (graph.groups[0], *graph.groups[2:])]
    rng = np.random.default_rng(0)
    for _ in range(4):
        plan = space.decode(rng.random(len(space)))
        counts = kept_counts(graph, plan)
        pruned = copy.deepcopy(model)
        prune(pruned, graph, {name: range(count) for name, count in counts.items()})
        assert space.costs(plan) == channel_costs(pruned, example)
        units = {group.name: group for group in graph.groups}
        assert all(count in allowed_counts(units[name], 2) for name, count in counts.items())


def test_knobs_hold_the_allowed_ratios_and_the_groups_numbers(network):
    _, _, graph = network
    space = channel_space(graph, ChannelSettings())
    for knob, group in zip(space.knobs, graph.groups, strict=True):
        assert knob.choices == tuple(count / group.units for count in allowed_counts(group, 8))
        assert (knob.compressed, knob.full) == (knob.choices[0], 1.0)
        assert knob.facts == {"params": group.params, "macs": group.macs, "units": group.units}


def test_plans_on_a_target_keep_allowed_counts_and_waste_less_than_one_step(network):
    _, _, graph = network
    space = channel_space(graph, ChannelSettings(round_to=2))
    low, high = space.reachable("macs")
    limits = {"macs": (low + high) / 2}
    curves = {knob.name: np.linspace(0.9, 0.0, 65) for knob in space.knobs}
    rng = np.random.default_rng(0)
    plans = [space.uniform(limits), allocate_plan(space, curves, limits)]
    plans += [space.fit_to_target(space.decode(rng.random(len(space))), limits) for _ in range(10)]
    for plan in plans:
        assert space.meets(plan, limits)
        assert all(plan[knob.name] in knob.choices for knob in space.knobs)
        assert space.costs(plan)["macs"] > 0.6 * limits["macs"]
    reach = f"reach {number_text(low)} to {number_text(high)}. Remedy"
    with pytest.raises(InfeasibleTarget, match=rf"target.macs: .* out of reach; .* {reach}"):
        space.uniform({"macs": 0.99 * low})


def test_no_plan_keeps_less_than_the_least_share_and_a_target_that_asks_for_less_is_refused(network):
    _, _, graph = network
    settings = ChannelSettings(round_to=1, min_keep=0.4)
    space, free = channel_space(graph, settings), channel_space(graph, ChannelSettings(round_to=1))
    units = {group.name: group.units for group in graph.groups}
    assert space.names == [name for name in free.names if units[name] > 1]
    assert [knob.compressed for knob in space.knobs] == [np.ceil(0.4 * units[n]) / units[n] for n in space.names]
    low, high = space.reachable("macs")
    assert free.reachable("macs")[0] < low
    limits = {"macs": low + 0.1 * (high - low)}
    assert min(space.uniform(limits).values()) >= 0.4
    reach = f"reach {number_text(low)} to {number_text(high)}. Remedy"
    with pytest.raises(InfeasibleTarget, match=rf"target.macs: .* out of reach; .* {reach}"):
        space.uniform({"macs": 0.99 * low})
    curves = error_curves(graph, settings, lambda group, count: count / group.units)
    assert all(curves[name][0] == knob.compressed for name, knob in zip(space.names, space.knobs, strict=True))
    with pytest.raises(ConfigError, match=r"learner.min_keep: 0.999 leaves every channel group whole. Remedy"):
        channel_space(graph, ChannelSettings(min_keep=0.999))


def test_a_plan_keeps_at_least_one_unit_and_rounds_to_the_nearest():
    graph: Any = SimpleNamespace(groups=(a_group(7),))
    assert [kept_counts(graph, {"g": ratio})["g"] for ratio in (0.0, 2 / 7, 0.35, 3 / 7, 1.0)] == [1, 2, 2, 3, 7]


def test_an_unknown_name_in_skip_is_refused_with_the_allowed_ones(network):
    _, _, graph = network
    with pytest.raises(UnsupportedModel, match=r"learner.skip: no channel group 'conv99'. Allowed: ") as caught:
        channel_space(graph, ChannelSettings(skip=(graph.groups[0].name, "conv99")))
    assert str(caught.value).endswith(", ".join(group.name for group in graph.groups))
    with pytest.raises(UnsupportedModel, match=r"no channels that can be removed \(.*\). Remedy: .*pfray.inspect"):
        searched_groups(graph, ChannelSettings(skip=tuple(group.name for group in graph.groups)))


@pytest.mark.parametrize(("make", "reason"), [
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), "1: its channels are an output of the model"),
    (lambda: nn.Sequential(nn.Conv2d(3, 1, 3), nn.Conv2d(1, 2, 2), nn.Flatten()), "0: a single channel"),
])  # fmt: skip
def test_a_model_with_nothing_to_prune_is_refused_with_the_reasons(make, reason):
    graph = graph_of(make().eval(), image_task((3, 4, 4)))
    with pytest.raises(UnsupportedModel, match=r"no channels that can be removed \(") as caught:
        channel_space(graph, ChannelSettings())
    assert reason in str(caught.value)
    assert "Remedy" in str(caught.value)


def test_group_fine_tuning_prunes_so_many_groups_at_a_time():
    plan = {"a": 0.5, "b": 1.0, "c": 0.25, "d": 0.75, "e": 0.5}
    whole = dict.fromkeys(plan, 1.0)
    # Of four pruned groups two at a time; the last stage is the plan itself, whose training is its own.
    assert group_plans(plan, 2) == [{**whole, "a": 0.5, "c": 0.25}]
    assert group_plans(plan, 1) == [
        {**whole, "a": 0.5},
        {**whole, "a": 0.5, "c": 0.25},
        {**whole, "a": 0.5, "c": 0.25, "d": 0.75},
    ]
    assert group_plans(plan, 3) == [{**plan, "e": 1.0}]
    for size in (0, 4, 9):
        assert group_plans(plan, size) == []
    assert group_plans(whole, 1) == []


@pytest.mark.parametrize("name", ["channel_pruned", "dis_chn_pruned", "filter_ranked"])
def test_each_stage_is_trained_for_the_epochs_of_the_settings(name):
    learner: type[Algorithm] = find_class("learner", name, Algorithm)

    def stages(**settings: int) -> list[Stage]:
        chosen = learner.settings_type(**settings)
        return learner(ZOO["Plain"]()[0], image_task((3, 16, 16)), chosen).stages({"a": 0.5, "b": 1.0, "c": 0.25})

    milder = {"a": 0.5, "b": 1.0, "c": 1.0}
    assert stages(group_size=1, group_epochs=3) == [Stage(milder, 3)]
    assert stages(group_size=1) == [Stage(milder, 1)]
    assert stages() == []


def test_what_is_left_of_a_side_is_cut_by_all_its_groups_together(network):
    model, _, graph = network
    kept = {group.name: np.arange(group.units)[1::2] for group in graph.groups[:-1]}
    pruned = copy.deepcopy(model)
    prune(pruned, graph, kept)
    stays = kept_positions(graph, kept)
    assert {layer for layer, _ in stays} <= {cut.layer for group in graph.groups for cut in group.cuts}
    assert kept_positions(graph, {group.name: np.arange(group.units) for group in graph.groups}) == {}
    for (layer, side), positions in stays.items():
        before, after = model.get_submodule(layer), pruned.get_submodule(layer)
        if isinstance(before, nn.Conv2d | nn.Linear) and getattr(before, "groups", 1) == 1:
            axis = 0 if side == "out" else 1
            assert after.weight.shape[axis] == len(positions) < before.weight.shape[axis]
            other = stays.get((layer, "in" if side == "out" else "out"))
            whole = before.weight.movedim(axis, 0)[positions]
            if other is None:
                assert torch.equal(after.weight.movedim(axis, 0), whole)


def test_the_graph_of_a_model_is_made_once_and_anew_however_it_has_been_pruned():
    own, model = image_task((3, 16, 16)), ZOO["Plain"]()[0]
    graph = graph_of(model, own)
    assert graph_of(model, own) is graph
    whole, model = model, with_counts(model, kept_counts(graph, {"conv1": 0.5, "conv2": 5 / 13, "fc1": 1.0}), own)
    assert graph_of(whole, own) is graph
    assert (whole.conv1.out_channels, whole.conv2.out_channels, whole.fc1.out_features) == (6, 13, 20)
    assert (model.conv1.out_channels, model.conv2.out_channels, model.fc1.out_features) == (3, 5, 20)
    assert graph_of(model, own).units.tolist() == [3, 5, 20]
    prune(model, graph_of(model, own), {"conv1": [2]})
    again = graph_of(model, own)
    assert {group.name: group.units for group in again.groups} == {"conv2": 5, "fc1": 20}
    assert graph_of(model, own) is again


def test_the_graph_counts_for_the_inputs_of_the_task():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    macs = [graph_of(model, image_task((3, size, size))).costs([4])["macs"] for size in (8, 6)]
    assert macs == [36 * 27 * 4 + 16 * 36 * 4, 16 * 27 * 4 + 4 * 36 * 4]


def test_what_an_earlier_stage_has_left_keeps_the_counts_of_the_teachers_plan():
    own, teacher = image_task((3, 16, 16)), ZOO["Plain"]()[0]
    graph = graph_of(teacher, own)
    counts = kept_counts(graph, {"conv1": 1 / 6, "conv2": 5 / 13})
    whole = groups_left(teacher, counts, own)
    assert [(group.name, group.units, count) for group, count in whole.items()] == [("conv1", 6, 1), ("conv2", 13, 5)]
    model = with_counts(teacher, kept_counts(graph, {"conv1": 1 / 6, "conv2": 8 / 13}), own)
    left_over = groups_left(model, counts, own)
    assert [(group.name, group.units, count) for group, count in left_over.items()] == [("conv2", 8, 5)]
