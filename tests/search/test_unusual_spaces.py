"""Spaces of very many knobs, of one, of whole bits, with free knobs, and plans below the target: every searcher."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pfray.config.registry import find_class
from pfray.search.base import PlanSearcher
from pfray.space import CompressionSpace, Knob
from tests.search.toy import LIMITS, drive, plans


def space_of(count: int, **knob: Any) -> CompressionSpace:
    """``count`` knobs whose cost is the mean value, weighted by sizes that differ 16-fold: sparsity, or bits."""
    weights = np.geomspace(1.0, 16.0, count) / np.geomspace(1.0, 16.0, count).sum()
    unit = "bits" if knob.get("integer") else "sparsity"
    knob = knob or {"compressed": 0.98, "full": 0.0, "scale": "log_density"}
    knobs = [Knob(f"layer{i}", facts={"params": 1e4 * w, "macs": 1e6 * w}, **knob) for i, w in enumerate(weights)]
    return CompressionSpace(tuple(knobs), lambda values: {unit: float(values @ weights)})


def search(
    name: str,
    space: CompressionSpace,
    limits: dict[str, float],
    trials: int,
    use_full_budget: bool = True,
    **settings: Any,
) -> PlanSearcher:
    found = find_class("search", name, PlanSearcher)
    own, first = found.settings_type(**settings), (("uniform", space.uniform(limits)),)
    return found(space, limits, own, seed=0, trials=trials, first_plans=first, use_full_budget=use_full_budget)


# With so many knobs a trial takes long: what learns begins to after five.
SOON = {
    "critic": {"warmup": 5, "updates": 4}, "ddpg": {"warmup": 5, "hidden": 16}, "gp": {"startup": 5},
    "tpe": {"startup": 5}, "policy_gradient": {"students": 5},
}  # fmt: skip


def test_five_hundred_knobs_are_searched(open_ended):
    space = space_of(500)
    searcher = search(open_ended, space, LIMITS, 6, **SOON.get(open_ended, {}))
    entries = drive(searcher, outcome=lambda e: {"score": -sum(e["plan"].values())})
    assert len(entries) == 6
    assert entries[-1]["origin"] == open_ended
    for plan in plans(entries):
        assert list(plan) == space.names
        assert all(0.0 <= value <= 0.98 for value in plan.values())
        assert space.costs(plan)["sparsity"] == pytest.approx(0.75, abs=1e-6)


def test_one_knob_that_the_target_decides_has_one_plan_and_the_search_ends(open_ended):
    space = space_of(1)
    searcher = search(open_ended, space, LIMITS, 25)
    entries = drive(searcher, outcome=lambda entry: {"score": 0.5})
    assert plans(entries) == [{"layer0": pytest.approx(0.75)}]
    assert searcher.finished()


@pytest.mark.parametrize("count", [1, 3])
def test_where_the_score_weighs_the_cost_plans_below_the_target_are_found(open_ended, count):
    space = space_of(count)
    searcher = search(open_ended, space, LIMITS, 25, use_full_budget=False)
    # Best is a sparsity of 0.9 everywhere, more than the target asks for.
    entries = drive(searcher, outcome=lambda e: {"score": -sum((v - 0.9) ** 2 for v in e["plan"].values())})
    sparsities = [space.costs(plan)["sparsity"] for plan in plans(entries)]
    assert len(entries) == 25
    assert min(sparsities) >= 0.75 - 1e-9
    assert max(sparsities) > 0.76
    if open_ended == "gp":
        assert searcher.best()["score"] > -0.01


def test_searched_settings_are_looked_for_in_their_whole_range(open_ended):
    rate = Knob("finetune.lr", compressed=1e-4, full=1e-1, scale="log", kind="setting", default=2e-2)
    space = space_of(20).with_free((rate,))
    entries = drive(search(open_ended, space, LIMITS, 24), outcome=lambda e: {"score": -e["plan"]["layer3"]})
    rates = [plan["finetune.lr"] for plan in plans(entries)]
    assert all(1e-4 <= value <= 1e-1 for value in rates)
    assert min(rates) < 3e-3
    assert max(rates) > 3e-2


def test_choices_too_far_apart_for_small_moves_are_searched_too(open_ended):
    # As channels kept in eights, beside switches that the target has thrown already.
    facts = {"params": 1e4, "macs": 1e6}
    coarse = [Knob(f"layer{i}", 0.0, 1.0, choices=(0.0, 0.5, 1.0), facts=facts) for i in range(25)]
    switches = [Knob(f"bits{i}", 8, 32, choices=(8, 32), facts=facts, kind="int8_switch") for i in range(55)]

    def costs(values: np.ndarray) -> dict[str, float]:
        return {"macs": float(values[:25].mean()), "bits": float(values[25:].mean())}

    space, limits = CompressionSpace((*coarse, *switches), costs), {"macs": 0.5, "bits": 8.0}
    entries = drive(search(open_ended, space, limits, 26), outcome=lambda e: {"score": -e["plan"]["layer3"]})
    assert len({tuple(plan.values()) for plan in plans(entries)}) == 26
    assert all(space.meets(plan, limits) for plan in plans(entries))


def test_bits_are_whole_numbers_within_their_range_and_on_the_target(open_ended):
    space, limits = space_of(12, compressed=2, full=8, integer=True), {"bits": 4.5}
    entries = drive(search(open_ended, space, limits, 25), outcome=lambda e: {"score": -e["plan"]["layer3"]})
    assert len({tuple(plan.values()) for plan in plans(entries)}) == 25
    for plan in plans(entries):
        assert set(plan.values()) <= {2, 3, 4, 5, 6, 7, 8}
        assert space.costs(plan)["bits"] <= 4.5
