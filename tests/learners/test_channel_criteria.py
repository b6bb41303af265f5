"""channel_pruned by other criteria than LASSO, with and without least squares, and which of them by default."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from learners import _channel_calibration
from learners._channel_calibration import highest
from learners.channel_pruned import LONG, ChannelPruned, Settings
from learners.filter_ranked import FilterRanked
from learners.filter_ranked import Settings as RankedSettings
from pfray.data import digits
from pfray.learner.context import Context
from pfray.measure.cost import count_params
from pfray.nn.modes import place
from pfray.task import Task
from tests.learners.removed import SETTINGS, distance
from tests.small import chain, make_task


@pytest.fixture(scope="module")
def task() -> Task:
    return digits.build()


@pytest.fixture(scope="module")
def teacher(context: Context) -> nn.Module:
    """A LeNet that knows the digits."""
    return place(copy.deepcopy(context.teacher), "cpu").eval()


def test_the_highest_scores_stay_and_of_equal_ones_the_first():
    found = highest(np.array([1.0, 3.0, 2.0, 3.0]))
    assert [kept.tolist() for kept in found] == [[], [1], [1, 3], [1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize("criterion", ["l1", "taylor"])
def test_a_ranking_without_least_squares_is_the_ranking_learner(criterion, teacher, task):
    settings = replace(SETTINGS, criterion=criterion, reconstruct=False)
    ranked = RankedSettings(criterion=criterion, images=SETTINGS.images, round_to=SETTINGS.round_to)
    pruned, other = ChannelPruned(teacher, task, settings), FilterRanked(teacher, task, ranked)
    plan = pruned.space().uniform({"macs": 0.3 * pruned.space().costs_at(np.ones(len(pruned.space())))["macs"]})
    for method in ("compress", "finish"):
        own, their = (getattr(learner, method)(plan).model.state_dict() for learner in (pruned, other))
        assert own.keys() == their.keys()
        assert all(torch.equal(own[name], their[name]) for name in own), method


def test_least_squares_make_up_for_what_a_ranking_removed(teacher, task):
    settings = replace(SETTINGS, criterion="l1", reconstruct=False)
    plain = ChannelPruned(teacher, task, settings)
    mended = ChannelPruned(teacher, task, replace(settings, reconstruct=True))
    plan = plain.space().uniform({"macs": 0.3 * plain.space().costs_at(np.ones(len(plain.space())))["macs"]})
    models = [learner.compress(plan).model for learner in (plain, mended)]
    # The first layer reads no removed channel, so the same filters of it stay.
    assert torch.equal(*(model.get_submodule("conv1").weight for model in models))
    removed, kept = (distance(model, teacher, task) for model in models)
    assert kept < 0.5 * removed
    assert distance(mended.finish(plan).model, teacher, task) < 0.5 * removed
    # Errors are those of the units that this criterion keeps.
    curves = [learner.error_curves() for learner in (plain, mended, ChannelPruned(teacher, task, SETTINGS))]
    assert all(np.array_equal(curves[0][name], curves[1][name]) for name in curves[0])
    assert any(not np.array_equal(curves[0][name], curves[2][name]) for name in curves[0])


@pytest.mark.parametrize(("given", "steps", "decided"), [
    ({}, 0, "lasso"),
    ({}, LONG - 1, "lasso"),
    ({}, LONG, "l1"),
    ({"group_size": 2, "group_epochs": 3}, LONG - 30, "l1"),  # of 10 steps each
    ({"group_size": 2, "group_epochs": 3}, LONG - 31, "lasso"),
    ({"criterion": "taylor"}, 0, "taylor"),
    ({"criterion": "lasso"}, LONG, "lasso"),
    ({"reconstruct": False}, LONG, "l1"),
])  # fmt: skip
def test_the_default_depends_on_the_training_that_follows(given, steps, decided):
    settings, why = ChannelPruned.for_training(Settings(**given), steps, 10)
    assert settings == replace(Settings(**given), criterion=decided)
    assert bool(why) == ("criterion" not in given)
    assert ChannelPruned.for_training(settings, steps, 10) == (settings, "")


def test_the_note_names_the_choice_and_the_reason():
    assert ChannelPruned.for_training(Settings(), 3510, 351)[1] == (
        "channel_pruned chooses channels by l1 norms (criterion), in trials too: "
        f"3,510 steps of training follow, not fewer than {LONG:,}"
    )
    without = ChannelPruned.for_training(Settings(), 0, 351)[1]
    assert "by LASSO (criterion)" in without
    assert without.endswith(f": 0 steps of training follow, fewer than {LONG:,}")


def test_a_ranking_without_least_squares_measures_no_inputs(monkeypatch):
    model, task = chain(), make_task()
    monkeypatch.setattr(_channel_calibration, "cached_moments", lambda *_: pytest.fail("inputs were measured"))
    learner = ChannelPruned(model, task, Settings(criterion="l1", reconstruct=False, images=40, round_to=1))
    plan = dict.fromkeys(learner.space().names, 0.5)
    assert count_params(learner.compress(plan).model)[0] == count_params(learner.finish(plan).model)[0]
