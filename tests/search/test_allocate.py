from __future__ import annotations

import itertools

import numpy as np
import pytest

from pfray.errors import InfeasibleTarget
from pfray.learner.pipeline_space import PipelineSpace
from pfray.search.allocate import allocate_plan
from pfray.space import CompressionSpace, Knob


def linear_space(costs_of, count: int = 2) -> CompressionSpace:
    """Keep ratios 0.1 .. 1."""
    return CompressionSpace(tuple(Knob(f"k{i}", compressed=0.1, full=1.0) for i in range(count)), costs_of)


def test_two_layers_of_known_curves_get_what_the_multiplier_gives_by_hand():
    # Errors 1 - exp(-a (1 - v)), so -log(1 - e) = a (1 - v): straight lines. The layer that loses less a unit of cost
    # (slope 1 against 3) is compressed to its end first, the other one pays the rest: 0.1 + v = 0.8.
    grid = np.linspace(0.1, 1.0, 91)
    curves = {"k0": 1 - np.exp(-(1 - grid)), "k1": 1 - np.exp(-3 * (1 - grid))}
    plan = allocate_plan(linear_space(lambda v: {"macs": float(v.sum())}), curves, {"macs": 0.8})
    # Straight lines are all or nothing at a multiplier; the last grid step to the target is then shared by both.
    assert plan == pytest.approx({"k0": 0.1, "k1": 0.7}, abs=0.02)
    assert sum(plan.values()) == pytest.approx(0.8)


def test_convex_curves_share_the_budget_where_their_slopes_are_equal():
    # -log(1 - e) = w (1 - v)^2; equal slopes 2 w (1 - v) at v0 + v1 = 1.2: 1 - v0 = 3 (1 - v1), so 0.6 and 0.2.
    grid = np.linspace(0.1, 1.0, 181)
    curves = {name: 1 - np.exp(-w * (1 - grid) ** 2) for name, w in (("k0", 1.0), ("k1", 3.0))}
    plan = allocate_plan(linear_space(lambda v: {"macs": float(v.sum())}), curves, {"macs": 1.2})
    assert plan == pytest.approx({"k0": 0.4, "k1": 0.8}, abs=0.006)


def test_where_layers_share_their_cost_it_is_as_good_as_trying_everything():
    # Both sides of a convolution: MACs are products of neighbours' keep ratios.
    def costs(v: np.ndarray) -> dict[str, float]:
        return {"macs": float(4 * v[0] + 9 * v[0] * v[1] + 2 * v[1] * v[2] + v[2])}

    grid = np.linspace(0.1, 1.0, 46)
    weights = (0.5, 2.0, 1.0)
    curves = {f"k{i}": 1 - np.exp(-w * (1 - grid) ** 2) for i, w in enumerate(weights)}
    space, limits = linear_space(costs, 3), {"macs": 6.0}

    def error(values) -> float:
        return sum(w * (1 - v) ** 2 for w, v in zip(weights, values, strict=True))

    best = min(error(v) for v in itertools.product(grid, repeat=3) if costs(np.array(v))["macs"] <= 6.0)
    plan = allocate_plan(space, curves, limits)
    assert space.meets(plan, limits)
    assert error(plan.values()) <= 1.05 * best
    assert error(plan.values()) < 0.8 * error(space.uniform(limits).values())


def test_a_layer_that_has_no_curve_and_a_searched_setting_stay_where_they_were():
    rate = Knob("lr", 1e-4, 1.0, scale="log", kind="setting", default=0.01)
    knobs = (Knob("k0", 0.1, 1.0), Knob("k1", 0.1, 1.0), rate)
    space = CompressionSpace(knobs, lambda v: {"macs": float(v.sum())})
    plan = allocate_plan(space, {"k0": np.linspace(0.9, 0.0, 65)}, {"macs": 1.2})
    assert plan["lr"] == pytest.approx(0.01)
    assert plan["k0"] + plan["k1"] == pytest.approx(1.2)


def test_integer_bits_and_a_target_that_needs_at_least():
    bits = CompressionSpace(
        tuple(Knob(n, compressed=2, full=8, integer=True) for n in "ab"), lambda v: {"bits": float(v.mean())}
    )
    steep, flat = (1 - 2.0 ** -np.linspace(2, 8, 7)) * 0, 0.5 ** np.linspace(2, 8, 7)
    plan = allocate_plan(bits, {"a": flat, "b": steep}, {"bits": 5})
    assert plan == {"a": 8.0, "b": 2.0}
    sparse = CompressionSpace(
        tuple(Knob(n, compressed=0.98, full=0.0, scale="log_density") for n in "ab"),
        lambda v: {"sparsity": float(v.mean())},
    )
    same = np.linspace(0.9, 0.0, 65)
    plan = allocate_plan(sparse, {"a": same, "b": same}, {"sparsity": 0.7})
    assert sparse.costs(plan)["sparsity"] == pytest.approx(0.7, abs=1e-9)


def test_a_target_out_of_reach_is_refused():
    space = linear_space(lambda v: {"macs": float(v.sum())})
    with pytest.raises(InfeasibleTarget, match=r"target.macs: 0.1 is out of reach"):
        allocate_plan(space, {"k0": np.linspace(1, 0, 9), "k1": np.linspace(1, 0, 9)}, {"macs": 0.1})


def test_a_block_goes_where_narrowing_it_would_lose_more_and_its_width_then_loses_nothing():
    # Three blocks, kept or removed, and the width of each: MACs are the kept blocks' sizes times their widths.
    sizes, gone, narrow = np.array([4.0, 3.0, 2.0]), np.array([0.9, 0.4, 0.1]), np.array([0.5, 2.0, 1.0])

    def costs(v: np.ndarray) -> dict[str, float]:
        return {"macs": float((v[:3] > 0.5) @ (sizes * v[3:]))}

    blocks = tuple(Knob(f"b{i}", 0.0, 1.0, choices=(0.0, 1.0), kind="layer") for i in range(3))
    space = PipelineSpace(
        (*blocks, *(Knob(f"k{i}", 0.1, 1.0) for i in range(3))), costs,
        idle=lambda v: np.array([False] * 3 + [kept < 0.5 for kept in v[:3]]),
    )  # fmt: skip
    assert space.taken_along == {0: {3}, 1: {4}, 2: {5}}
    grid = np.linspace(0.1, 1.0, 46)
    curves = {f"b{i}": np.array([1 - np.exp(-e), 0.0]) for i, e in enumerate(gone)}
    curves |= {f"k{i}": 1 - np.exp(-w * (1 - grid) ** 2) for i, w in enumerate(narrow)}

    def error(plan: list[float]) -> float:
        v = np.array(plan)
        return float(((v[:3] < 0.5) * gone + (v[:3] > 0.5) * narrow * (1 - v[3:]) ** 2).sum())

    for limit in (6.0, 4.0, 2.0):
        plan = allocate_plan(space, curves, {"macs": limit})
        found = [
            (error([*kept, *widths]), kept)
            for kept in itertools.product((0.0, 1.0), repeat=3)
            for widths in itertools.product(np.linspace(0.1, 1.0, 19), repeat=3)
            if costs(np.array([*kept, *widths]))["macs"] <= limit
        ]
        best, _ = min(found)
        assert costs(np.array([*plan.values()]))["macs"] <= limit
        assert error([*plan.values()]) <= 1.1 * best
        assert all(plan[f"k{i}"] == 1 for i in range(3) if plan[f"b{i}"] == 0)
    assert plan["b2"] == 0
