from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from pfray.errors import InfeasibleTarget
from pfray.space import CompressionSpace, Knob

SIZES = np.array([100, 2_000, 50_000])


def sparsity_costs(values: np.ndarray) -> dict[str, float]:
    pruned = float(np.rint(values * SIZES).sum())
    return {"sparsity": pruned / SIZES.sum(), "params": SIZES.sum() - pruned}


@pytest.fixture
def space() -> CompressionSpace:
    """Three layers, the sparsity of each, the second one's range ending early."""
    tops = (0.98, 0.9, 0.98)
    knobs = tuple(Knob(n, compressed=top, full=0.0, scale="log_density") for n, top in zip("abc", tops, strict=True))
    return CompressionSpace(knobs, sparsity_costs)


@pytest.fixture
def bits() -> CompressionSpace:
    """Two layers of 10 and 30 weights, in whole bits from 2 to 8, and a keep ratio that costs as much as 100 bits."""
    knobs = (
        Knob("first", compressed=2, full=8, integer=True),
        Knob("second", compressed=2, full=8, integer=True),
        Knob("keep", compressed=0.2, full=1.0),
    )
    return CompressionSpace(knobs, lambda v: {"bits": float(v @ [10, 30, 100])})


@pytest.mark.parametrize(("changes", "words"), [
    ({"compressed": 0.5, "full": 0.5}, "knob a: both ends are 0.5"),
    ({"compressed": 1.0, "full": 0.0}, "not 0.0 and 1.0"),
    ({"compressed": 0.2, "full": 0.6}, "not 0.6 and 0.2"),
    ({"compressed": 0.5, "full": -0.1}, "not -0.1 and 0.5"),
])  # fmt: skip
def test_a_knob_without_a_sensible_range_is_refused(changes, words):
    with pytest.raises(ValueError, match="knob a") as caught:
        Knob("a", scale="log_density", **changes)
    assert words in str(caught.value)


def test_decoding_inverts_encoding(space, bits):
    rng = np.random.default_rng(0)
    for _ in range(50):
        positions = rng.random(3)
        assert space.encode(space.decode(positions)) == pytest.approx(positions, abs=1e-12)
    plan = {"first": 3.0, "second": 7.0, "keep": 0.37}
    assert bits.decode(bits.encode(plan)) == pytest.approx(plan, abs=1e-12)
    assert bits.encode(plan) == pytest.approx([1 / 6, 5 / 6, 0.17 / 0.8])


def test_positions_run_from_the_compressed_to_the_full_end_and_are_clipped(space, bits):
    assert space.decode(np.zeros(3)) == pytest.approx({"a": 0.98, "b": 0.9, "c": 0.98})
    assert space.decode(np.full(3, 7.0)) == {"a": 0.0, "b": 0.0, "c": 0.0}
    assert bits.decode(np.array([-3.0, 0.5, 1.0])) == {"first": 2.0, "second": 5.0, "keep": 1.0}
    assert space.encode({"a": 0.999, "b": 0.95, "c": 0.0}).tolist() == [0.0, 0.0, 1.0]


def test_integer_knobs_are_rounded_to_whole_numbers(bits):
    # Position 0.4 of 2..8 is 4.4, position 0.45 is 4.7.
    assert bits.decode(np.array([0.4, 0.45, 0.5])) == pytest.approx({"first": 4, "second": 5, "keep": 0.6})


def test_halving_what_is_left_is_one_distance_wherever_it_starts(space):
    def position(sparsity: float) -> float:
        return space.encode({"a": sparsity, "b": 0.0, "c": 0.0})[0]

    step = position(0.0) - position(0.5)
    assert step == pytest.approx(np.log(2) / np.log(50))
    assert position(0.90) - position(0.95) == pytest.approx(step)


@pytest.mark.parametrize("target", [0.1, 0.5, 0.75, 0.9, 0.97])
def test_uniform_gives_each_knob_the_same_value_and_wastes_nothing(space, target):
    plan = space.uniform({"sparsity": target})
    assert plan["a"] == plan["c"]
    assert plan["b"] == min(plan["a"], 0.9)
    assert target <= space.costs(plan)["sparsity"] <= target + 3 / SIZES.sum()


def test_uniform_works_for_knobs_whose_values_shrink_with_compression(bits):
    # The same number v everywhere, v <= 1 for keep: 40 v + 100 <= 300, in whole and broken bits alike.
    assert bits.uniform({"bits": 300}) == pytest.approx({"first": 5, "second": 5, "keep": 1.0})


def test_any_plan_is_moved_exactly_onto_the_target(space):
    rng = np.random.default_rng(0)
    for _ in range(200):
        limit = rng.uniform(0.02, 0.97)
        fitted = space.fit_to_target(space.decode(rng.random(3)), {"sparsity": limit})
        assert space.meets(fitted, {"sparsity": limit})
        one_less = {n: max(0.0, v - 1 / size) for (n, v), size in zip(fitted.items(), SIZES, strict=True)}
        assert not space.meets(one_less, {"sparsity": limit})


def test_all_positions_move_by_one_common_step_except_at_the_ends(space):
    rng = np.random.default_rng(1)
    for _ in range(200):
        before = rng.random(3)
        moved = space.encode(space.fit_to_target(space.decode(before), {"sparsity": rng.uniform(0.02, 0.97)})) - before
        step = moved[np.abs(moved).argmax()]
        at_end = (before + moved < 1e-9) | (before + moved > 1 - 1e-9)
        assert moved[~at_end] == pytest.approx(step, abs=1e-9)
        assert (np.abs(moved[at_end]) <= abs(step) + 1e-9).all()


def test_a_plan_that_wastes_is_given_back_what_it_may_keep(space):
    wasteful = {"a": 0.9, "b": 0.8, "c": 0.95}
    fitted = space.fit_to_target(wasteful, {"sparsity": 0.6})
    assert all(fitted[name] < wasteful[name] for name in "abc")
    assert 0.6 <= space.costs(fitted)["sparsity"] <= 0.6 + 3 / SIZES.sum()


def test_the_stricter_of_two_limits_decides(space):
    plan = {"a": 0.3, "b": 0.3, "c": 0.3}
    total = SIZES.sum()
    strict = space.fit_to_target(plan, {"sparsity": 0.5, "params": 0.2 * total})
    assert strict == space.fit_to_target(plan, {"params": 0.2 * total})
    assert strict == space.fit_to_target(plan, {"sparsity": 0.8, "params": 0.4 * total})
    assert space.costs(strict)["params"] <= 0.2 * total


def test_whole_bits_stay_whole_on_the_target(bits):
    fitted = bits.fit_to_target({"first": 8, "second": 4, "keep": 0.5}, {"bits": 200})
    assert fitted["first"] == round(fitted["first"])
    assert fitted["second"] == round(fitted["second"])
    assert 200 - 40 <= bits.costs(fitted)["bits"] <= 200


def test_a_target_out_of_reach_is_refused_with_the_reachable_range(space):
    dense = dict.fromkeys("abc", 0.0)
    for move in (space.uniform, partial(space.fit_to_target, dense)):
        with pytest.raises(InfeasibleTarget, match=r"target.sparsity: 0.99 is out of reach; .* 0 to 0.97") as caught:
            move({"sparsity": 0.99})
        assert "Remedy" in str(caught.value)
    low = space.reachable("params")[0]
    with pytest.raises(InfeasibleTarget, match=rf"target.params: 1000 .* reach {low:g} to 52100"):
        space.uniform({"sparsity": 0.5, "params": 1000})


def test_the_reachable_range_is_that_of_the_two_ends(space, bits):
    pruned = 98 + 1_800 + 49_000
    assert space.reachable("sparsity") == (0.0, pruned / 52_100)
    assert space.reachable("params") == (52_100 - pruned, 52_100)
    assert bits.reachable("bits") == pytest.approx((2 * 40 + 20, 8 * 40 + 100))


def test_meets_compares_each_unit_in_its_own_direction(space):
    half = dict.fromkeys("abc", 0.5)
    assert space.meets(half, {"sparsity": 0.5})
    assert not space.meets(half, {"sparsity": 0.51})
    assert space.meets(half, {"params": 26_050})
    assert not space.meets(half, {"params": 26_049})


def test_a_free_knob_costs_nothing_and_no_target_moves_it(space):
    rate = Knob("lr", compressed=1e-4, full=1e-1, scale="log", free=True, default=1e-2)
    beside = space.with_free((rate,))
    limits = {"sparsity": 0.6}
    plan = {**space.decode(np.full(len(space), 0.9)), "lr": 3e-4}
    fitted = beside.fit_to_target(plan, limits)
    assert fitted["lr"] == pytest.approx(3e-4)
    assert {k: v for k, v in fitted.items() if k != "lr"} == pytest.approx(space.fit_to_target(plan, limits))
    assert beside.uniform(limits) == pytest.approx({**space.uniform(limits), "lr": 1e-2})
    assert beside.costs(plan) == space.costs(plan)
    assert beside.reachable("sparsity") == space.reachable("sparsity")
