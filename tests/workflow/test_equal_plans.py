"""Plans of one model are one plan, and share its training."""

from __future__ import annotations

import pytest

from learners.channel_pruned import ChannelPruned
from learners.channel_pruned import Settings as PruningSettings
from learners.weight_sparse import WeightSparse
from pfray.data import digits
from pfray.learner.context import Context, Recipe
from pfray.models.lenet import lenet
from pfray.training.settings import Training
from pfray.workflow.equal_plans import merge_equal


@pytest.fixture(scope="module")
def untrained() -> Context:
    return Context(digits.build(), lenet(in_channels=1))


def test_ratios_that_are_rounded_to_the_same_channels_are_the_chosen_plan(untrained):
    recipe = Recipe(ChannelPruned, PruningSettings(images=20, round_to=8), Training())
    space = ChannelPruned(untrained.teacher, untrained.task, recipe.settings).space()
    chosen = {knob.name: 0.5 for knob in space.knobs}
    close = dict.fromkeys(chosen, 0.501)
    other = dict.fromkeys(chosen, 1.0)
    plans = {"uniform": close, "allocate": other, "compressed": chosen}
    merged, shared = merge_equal(plans, "compressed", space, recipe, untrained)
    assert merged == {"uniform": chosen, "allocate": other, "compressed": chosen}
    assert list(merged) == list(plans)
    assert shared == {"uniform": "compressed"}


def test_baselines_that_are_equal_share_with_the_first_of_them(untrained):
    recipe = Recipe(WeightSparse, WeightSparse.settings_type(), Training())
    space = WeightSparse(untrained.teacher, untrained.task).space()
    half, more = (dict.fromkeys(space.names, share) for share in (0.5, 0.6))
    plans = {"uniform": half, "allocate": dict.fromkeys(half, 0.5 + 1e-12), "compressed": more}
    assert merge_equal(plans, "compressed", space, recipe, untrained) == (
        {"uniform": half, "allocate": half, "compressed": more}, {"allocate": "uniform"},
    )  # fmt: skip


def test_plans_of_other_costs_are_other_plans_although_the_structure_is_the_same(untrained):
    class Loose(WeightSparse):
        def structure(self, plan):
            return "dense"

    recipe = Recipe(Loose, Loose.settings_type(), Training())
    space = Loose(untrained.teacher, untrained.task).space()
    plans = {"uniform": dict.fromkeys(space.names, 0.5), "compressed": dict.fromkeys(space.names, 0.501)}
    assert merge_equal(plans, "compressed", space, recipe, untrained) == (plans, {})


def test_settings_that_were_searched_make_another_plan(untrained):
    recipe = Recipe(WeightSparse, WeightSparse.settings_type(), Training(), searched=("finetune.lr",))
    space = WeightSparse(untrained.teacher, untrained.task).space()
    half = dict.fromkeys(space.names, 0.5)
    plans = {"uniform": {**half, "finetune.lr": 0.1}, "compressed": {**half, "finetune.lr": 0.01}}
    assert merge_equal(plans, "compressed", space, recipe, untrained) == (plans, {})
