from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from pfray.errors import InfeasibleTarget
from pfray.search.allocate import allocate_plan
from pfray.space import CompressionSpace, Knob
from pfray.units import number_text

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


@pytest.fixture
def counts() -> CompressionSpace:
    """The channels that two layers keep: 4, 8, 12 or 16 of 16, and 2, 6, 7 or 10 of 10; and a knob of any value."""
    knobs = (
        Knob("wide", compressed=4, full=16, choices=(4, 8, 12, 16)),
        Knob("odd", compressed=2, full=10, choices=(2, 6, 7, 10)),
        Knob("any", compressed=0.5, full=1.0),
    )
    return CompressionSpace(knobs, lambda v: {"macs": float(30 * v[0] + v[0] * v[1] + 20 * v[2])})


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
    with pytest.raises(InfeasibleTarget, match=rf"target.params: 1,000 .* reach {number_text(low)} to 52,100"):
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
    rate = Knob("lr", compressed=1e-4, full=1e-1, scale="log", kind="setting", default=1e-2)
    beside = space.with_free((rate,))
    limits = {"sparsity": 0.6}
    plan = {**space.decode(np.full(len(space), 0.9)), "lr": 3e-4}
    fitted = beside.fit_to_target(plan, limits)
    assert fitted["lr"] == pytest.approx(3e-4)
    assert {k: v for k, v in fitted.items() if k != "lr"} == pytest.approx(space.fit_to_target(plan, limits))
    assert beside.uniform(limits) == pytest.approx({**space.uniform(limits), "lr": 1e-2})
    assert beside.costs(plan) == space.costs(plan)
    assert beside.reachable("sparsity") == space.reachable("sparsity")


@pytest.mark.parametrize("choices", [(4, 8), (8, 16), (4, 8, 17), (8,)])
def test_choices_that_do_not_end_where_the_range_does_are_refused(choices):
    with pytest.raises(ValueError, match=r"knob a: the choices do not end at 4 and 16"):
        Knob("a", compressed=4, full=16, choices=choices)
    Knob("a", compressed=16, full=4, choices=(4, 8, 16))


def test_of_choices_the_nearest_is_taken(counts):
    assert counts.decode(np.zeros(3)) == {"wide": 4, "odd": 2, "any": 0.5}
    assert counts.decode(np.ones(3)) == {"wide": 16, "odd": 10, "any": 1.0}
    # Position 0.49 of 4..16 is 9.88, and 0.51 is 10.12; position 0.6 of 2..10 is 6.8, and 0.3 is 4.4.
    assert counts.decode(np.array([0.49, 0.6, 0.4])) == pytest.approx({"wide": 8, "odd": 7, "any": 0.7})
    assert counts.decode(np.array([0.51, 0.3, 0.4])) == pytest.approx({"wide": 12, "odd": 6, "any": 0.7})
    plan = {"wide": 12.0, "odd": 7.0, "any": 0.6}
    assert counts.encode(plan) == pytest.approx([8 / 12, 5 / 8, 0.2])
    assert counts.decode(counts.encode(plan)) == pytest.approx(plan)


def test_costs_are_those_of_the_choice_and_not_of_what_lies_between(counts):
    assert counts.costs_at(np.array([0.49, 0.6, 0.0])) == {"macs": 30 * 8 + 8 * 7 + 20 * 0.5}
    assert counts.reachable("macs") == (4 * 32 + 10, 16 * 40 + 20)


def test_plans_moved_onto_a_target_keep_to_the_choices(counts):
    rng = np.random.default_rng(0)
    met = set()
    for _ in range(200):
        limits = {"macs": rng.uniform(140, 660)}
        for plan in (counts.uniform(limits), counts.fit_to_target(counts.decode(rng.random(3)), limits)):
            assert counts.meets(plan, limits)
            assert all(plan[knob.name] in knob.choices for knob in counts.knobs[:2])
            met.add(plan["odd"])
    assert met == {2, 6, 7, 10}
    with pytest.raises(InfeasibleTarget, match=r"target.macs: 137 is out of reach; .* reach 138 to 660"):
        counts.uniform({"macs": 137})


def test_no_common_step_further_meets_the_target_with_choices(counts):
    rng = np.random.default_rng(1)
    for _ in range(50):
        limits, start = {"macs": rng.uniform(140, 600)}, rng.random(3)
        fitted = counts.fit_to_target(counts.decode(start), limits)
        steps = np.linspace(-1, 1, 2001)
        begin = counts.encode(counts.decode(start))
        best = max(counts.costs_at(begin + step)["macs"] for step in steps
                   if counts.costs_at(begin + step)["macs"] <= limits["macs"])  # fmt: skip
        assert counts.costs(fitted)["macs"] >= best - 0.02


def test_a_plan_is_allocated_among_the_choices():
    # Errors 1 - exp(-w (1 - v)^2) with the weights 1 and 3, of keep ratios in quarters, whose sum may be 1.25.
    ratios = (0.25, 0.5, 0.75, 1.0)
    space = CompressionSpace(
        tuple(Knob(name, compressed=0.25, full=1.0, choices=ratios) for name in "ab"),
        lambda v: {"macs": float(v.sum())},
    )
    grid = np.linspace(0.25, 1.0, 65)
    nearest = grid[:, None] - np.array(ratios)
    values = np.array(ratios)[np.abs(nearest).argmin(1)]
    curves = {name: 1 - np.exp(-w * (1 - values) ** 2) for name, w in (("a", 1.0), ("b", 3.0))}
    # 0.5 and 0.75 lose 0.25 + 3 / 16; the other plans lose more: 0.25 and 1.0 lose 9 / 16, 0.75 and 0.5 13 / 16.
    assert allocate_plan(space, curves, {"macs": 1.25}) == {"a": 0.5, "b": 0.75}


def test_a_knob_is_what_its_kind_says_and_nothing_is_read_from_its_values():
    kinds = {"bits": "int8_switch", "layer": "layer", "channels": "", "lr": "setting"}
    knobs = tuple(Knob(n, 8, 32, choices=(8, 32), kind=k, default=8 if n == "lr" else None) for n, k in kinds.items())
    space = CompressionSpace(knobs, lambda values: {})
    assert space.of_kind("int8_switch").tolist() == [True, False, False, False]
    assert space.of_kind("").tolist() == [False, False, True, False]
    assert space.free.tolist() == [False, False, False, True]


@pytest.mark.parametrize(("changes", "words"), [
    ({"kind": "int8-switch"}, "knob a: unknown kind 'int8-switch'. Allowed: keep_ratio, sparsity, bits, int8_switch, "),
    ({"kind": "setting"}, "knob a: a setting, and no other knob, has a default"),
    ({"default": 0.5}, "knob a: a setting, and no other knob, has a default"),
])  # fmt: skip
def test_a_kind_that_is_unknown_or_lacks_its_default_is_refused(changes, words):
    with pytest.raises(ValueError, match="knob a") as caught:
        Knob("a", 0.1, 1.0, **changes)
    assert words in str(caught.value)
