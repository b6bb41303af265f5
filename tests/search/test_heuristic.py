from __future__ import annotations

import math

import numpy as np
import pytest

from pfray.search.heuristic import heuristic_plan
from pfray.space import CompressionSpace, Knob

SIZES = np.array([10, 1_000, 100_000])


def space(compressed: float = 0.99) -> CompressionSpace:
    knobs = tuple(
        Knob(name, compressed=compressed, full=0.0, scale="log_density", facts={"params": size})
        for name, size in zip("abc", SIZES.tolist(), strict=True)
    )
    return CompressionSpace(knobs, lambda values: {"sparsity": float(values @ SIZES / SIZES.sum())})


def test_positions_fall_with_the_logarithm_of_the_size_then_move_together_onto_the_target():
    found = space().encode(heuristic_plan(space(), {"sparsity": 0.9}))
    # 1 - log(n) / log(100,000) is 4/5, 2/5, 0. The large layer decides the target almost alone: 0.9 of it is half way
    # from 0 to 0.99 on the logarithmic scale. So all move by 1/2, the small one as far as its end.
    assert found == pytest.approx([1.0, 0.9, 0.5], abs=0.015)
    assert found[1] - found[2] == pytest.approx(0.4)


def test_larger_layers_get_larger_sparsity_and_the_target_is_met():
    plan = heuristic_plan(space(), {"sparsity": 0.98})
    assert 0 < plan["a"] < plan["b"] < plan["c"]
    assert space().costs(plan)["sparsity"] == pytest.approx(0.98, abs=1e-9)


def test_layers_of_one_size_get_one_sparsity():
    knobs = tuple(Knob(n, compressed=0.98, full=0.0, scale="log_density", facts={"params": 50}) for n in "ab")
    plan = heuristic_plan(CompressionSpace(knobs, lambda v: {"sparsity": float(v.mean())}), {"sparsity": 0.6})
    assert plan == pytest.approx({"a": 0.6, "b": 0.6})


def test_a_layer_of_a_single_weight_does_no_harm():
    knobs = (
        Knob("one", compressed=0.98, full=0.0, scale="log_density", facts={"params": 1}),
        Knob("many", compressed=0.98, full=0.0, scale="log_density", facts={"params": 1_000}),
    )
    one = CompressionSpace(knobs, lambda v: {"sparsity": float((v[0] + 1_000 * v[1]) / 1_001)})
    plan = heuristic_plan(one, {"sparsity": 0.5})
    assert all(math.isfinite(value) for value in plan.values())
    assert plan["one"] < plan["many"]
