from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pfray.errors import InfeasibleTarget
from pfray.learner.pipeline_space import PipelineSpace
from pfray.search.heuristic import heuristic_plan
from pfray.space import CompressionSpace, Knob

# log(n) is 1, 2 and 3 times log(10).
SIZES = np.array([10, 100, 1_000])


def space(most: float = 0.98) -> CompressionSpace:
    knobs = tuple(
        Knob(name, compressed=most, full=0.0, scale="log_density", facts={"params": size})
        for name, size in zip("abc", SIZES.tolist(), strict=True)
    )
    return CompressionSpace(knobs, lambda values: {"sparsity": float(values @ SIZES / SIZES.sum())})


def test_the_sparsity_of_a_layer_is_alpha_times_the_logarithm_of_its_size():
    plan = heuristic_plan(space(), {"sparsity": 0.6})
    # 666 of 1,110 weights go: a 10 + 2 a 100 + 3 a 1,000 = 3,210 a, with a = alpha log(10).
    a = 666 / 3210
    assert list(plan.values()) == pytest.approx([a, 2 * a, 3 * a], abs=1e-9)
    # PocketFlow's closed form is the same alpha.
    closed = 0.6 * SIZES.sum() / (SIZES * np.log(SIZES)).sum()
    assert list(plan.values()) == pytest.approx(closed * np.log(SIZES), abs=1e-9)


def test_a_layer_ends_at_its_most_and_alpha_makes_up_for_it():
    plan = heuristic_plan(space(most=0.92), {"sparsity": 0.9})
    # 999 go. With a = 999 / 3,210 the large layer would lose 0.934; it loses 920 weights, and 210 a = 79.
    a = 79 / 210
    assert list(plan.values()) == pytest.approx([a, 2 * a, 0.92], abs=1e-9)
    assert space().costs(plan)["sparsity"] == pytest.approx(0.9, abs=1e-12)


def test_a_target_out_of_reach_is_refused():
    with pytest.raises(InfeasibleTarget, match=r"sparsity: 0\.95 is out of reach"):
        heuristic_plan(space(most=0.92), {"sparsity": 0.95})


def test_layers_of_one_size_get_one_sparsity():
    knobs = tuple(Knob(n, compressed=0.98, full=0.0, scale="log_density", facts={"params": 50}) for n in "ab")
    plan = heuristic_plan(CompressionSpace(knobs, lambda v: {"sparsity": float(v.mean())}), {"sparsity": 0.6})
    assert plan == pytest.approx({"a": 0.6, "b": 0.6})


def test_a_layer_of_a_single_weight_stays_until_the_others_are_at_their_most():
    knobs = tuple(
        Knob(name, compressed=0.98, full=0.0, scale="log_density", facts={"params": size})
        for name, size in (("one", 1), ("many", 1_000))
    )
    one = CompressionSpace(knobs, lambda v: {"sparsity": float((v[0] + 1_000 * v[1]) / 1_001)})
    plan = heuristic_plan(one, {"sparsity": 0.5})
    assert plan == pytest.approx({"one": 0.0, "many": 0.5 * 1_001 / 1_000})
    assert one.meets(heuristic_plan(one, {"sparsity": 0.9795}), {"sparsity": 0.9795})


def test_only_layers_of_a_single_weight_meet_the_target_too():
    knobs = (Knob("one", compressed=0.98, full=0.0, scale="log_density", facts={"params": 1}),)
    plan = heuristic_plan(CompressionSpace(knobs, lambda v: {"sparsity": float(v[0])}), {"sparsity": 0.5})
    assert plan == pytest.approx({"one": 0.5})


def test_of_keep_ratios_the_share_that_goes_grows_so():
    knobs = tuple(
        Knob(n, compressed=0.1, full=1.0, facts={"params": size}) for n, size in zip("abc", SIZES.tolist(), strict=True)
    )
    ratios = CompressionSpace(knobs, lambda values: {"params": float(values @ SIZES)})
    plan = heuristic_plan(ratios, {"params": 444.0})
    a = 666 / 3210
    assert list(plan.values()) == pytest.approx([1 - a, 1 - 2 * a, 1 - 3 * a], abs=1e-9)


def test_of_bits_the_number_that_goes_grows_so_and_what_rounding_leaves_is_used():
    knobs = tuple(
        Knob(n, compressed=1, full=8, integer=True, facts={"params": size})
        for n, size in zip("abc", SIZES.tolist(), strict=True)
    )
    bits = CompressionSpace(knobs, lambda values: {"bits": float(values @ SIZES / SIZES.sum())})
    plan = heuristic_plan(bits, {"bits": 5.1})
    # 1, 2 and 3 bits go: (7 * 10 + 6 * 100 + 5 * 1,000) / 1,110 = 5.108 is just too much. With 4 bits, the next that c
    # can have, there is room for one more in each of the others.
    assert plan == {"a": 8.0, "b": 7.0, "c": 4.0}
    assert heuristic_plan(bits, {"bits": 5.11}) == {"a": 7.0, "b": 6.0, "c": 5.0}


def test_in_a_pipeline_each_learner_has_an_alpha_of_its_own_where_its_limits_are():
    def part(name: str, **knob: Any) -> CompressionSpace:
        knobs = tuple(Knob(f"{name}:{size}", facts={"params": size}, **knob) for size in SIZES.tolist())
        return CompressionSpace(knobs, lambda values: {name: float(values @ SIZES / SIZES.sum())})

    share, bits = part("share", compressed=0.1, full=1.0), part("bits", compressed=1.0, full=8.0)
    whole = PipelineSpace(
        (*share.knobs, *bits.knobs), lambda v: {**share.costs_of(v[:3]), **bits.costs_of(v[3:])}, parts=(share, bits)
    )
    plan = heuristic_plan(whole, {"share": 0.4, "bits": 6.0})
    a, b = 666 / 3210, 2 * 1110 / 3210
    assert list(plan.values()) == pytest.approx([1 - a, 1 - 2 * a, 1 - 3 * a, 8 - b, 8 - 2 * b, 8 - 3 * b])


def test_in_a_pipeline_a_common_limit_has_one_alpha_and_each_learner_its_unit():
    def part(name: str, **knob: Any) -> CompressionSpace:
        knobs = tuple(Knob(f"{name}:{size}", facts={"params": size}, **knob) for size in (10, 100))
        return CompressionSpace(knobs, lambda values: {"size": float(values.sum())})

    share, bits = part("share", compressed=0.0, full=1.0), part("bits", compressed=0.0, full=8.0)
    whole = PipelineSpace((*share.knobs, *bits.knobs), lambda v: {"size": float(v.sum())}, parts=(share, bits))
    # Of 18 in all a and 2 a of the shares go, 8 a and 16 a of the bits.
    plan = heuristic_plan(whole, {"size": 18 - 27 * 0.3})
    assert list(plan.values()) == pytest.approx([0.7, 0.4, 8 - 2.4, 8 - 4.8])
