"""Networks searched from nothing: knobs, exact costs, every searcher, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learners.architecture import Architecture, Settings, stage_channels
from pfray.config.registry import find_class, parse_settings
from pfray.errors import ConfigError, UnsupportedModel
from pfray.measure.cost import count_params, total_macs
from pfray.search.base import PlanSearcher
from pfray.task import example_input
from tests.small import make_task

SMALL = Settings(channels=(16, 32, 64), depth=2)


@pytest.fixture(scope="module")
def small(context):
    return Architecture(context.teacher, context.task, SMALL)


@pytest.fixture(scope="module")
def space(small):
    return small.space()


def test_a_plan_says_how_deep_and_how_wide_each_stage_is(small, space):
    assert space.names == [f"stage{i}.{what}" for i in (1, 2, 3) for what in ("depth", "width")]
    plan = space.decode(np.array([0.0, 0.0, 1.0, 1.0, 0.0, 1.0]))
    assert stage_channels(plan, SMALL) == [[8], [32, 32], [64]]
    layers = [m for m in small.compress(plan).model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in layers] == [(1, 8), (8, 32), (32, 32), (32, 64)]


def test_every_plan_costs_as_much_as_its_network(small, space):
    rng = np.random.default_rng(0)
    for plan in (space.decode(rng.random(len(space))) for _ in range(6)):
        model = small.compress(plan).model
        params = count_params(model)[0]
        macs = total_macs(model, example_input(small.task))
        assert space.costs(plan) == {"params": params, "macs": macs, "size_bytes": 4 * params}


@pytest.mark.parametrize(("name", "settings"), [
    ("random", {"spread": 1.0}), ("tpe", {"spread": 1.0}), ("gp", {"spread": 1.0, "startup": 3}),
    ("critic", {"spread": 1.0, "warmup": 3}), ("ddpg", {"warmup": 3}), ("policy_gradient", {"students": 3}),
])  # fmt: skip
def test_every_searcher_finds_networks_of_several_depths_that_meet_the_target(space, name, settings):
    limits = {"params": 0.3 * space.reachable("params")[1]}
    searcher: type[PlanSearcher] = find_class("search", name, PlanSearcher)
    first = (("uniform", space.uniform(limits)),)
    search = searcher(space, limits, searcher.settings_type(**settings), trials=8, first_plans=first)
    found = []
    for number in range(6):
        suggested = search.suggest(str(number))
        found.append(suggested["plan"])
        score = sum(found[-1].values())
        search.on_trial_complete(str(number), {"score": score, "standard_error": 0.1})
    assert all(space.meets(plan, limits) for plan in found)
    assert len({tuple(plan.values()) for plan in found}) == len(found)
    assert len({tuple(len(stage) for stage in stage_channels(plan, SMALL)) for plan in found}) >= 2


def test_stages_of_one_layer_have_no_depth_to_choose(context):
    space = Architecture(context.teacher, context.task, Settings(channels=(16, 32), depth=1)).space()
    assert space.names == ["stage1.width", "stage2.width"]


def test_images_that_cannot_be_halved_so_often_are_refused(context):
    with pytest.raises(UnsupportedModel, match=r"3 stages halve the input as often.*\(2, 4, 8\).*8x8 or more"):
        Architecture(context.teacher, make_task((2, 4, 8)), SMALL).space()


@pytest.mark.parametrize(("settings", "message"), [
    ({"channels": []}, "channels is empty"),
    ({"channels": [16, 20]}, r"learner.channels.1: 20 is not allowed: .*multiple of 8"),
    ({"depth": 0}, r"learner.depth: 0 is not allowed"),
])  # fmt: skip
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings("learner", Settings, settings)
