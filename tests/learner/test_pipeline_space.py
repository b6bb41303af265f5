"""The joint space of two made-up learners: keep ratios of two layers, then 8 bits on or off for each."""

from __future__ import annotations

import numpy as np
import pytest

from pfray.errors import ConfigError
from pfray.learner.pipeline_space import joint_space
from pfray.search.heuristic import heuristic_plan
from pfray.space import CompressionSpace, Knob

SIZES = np.array([100.0, 300.0])
PRUNED = CompressionSpace(
    tuple(Knob(n, 0.1, 1.0, facts={"params": s}, kind="keep_ratio") for n, s in zip("ab", SIZES, strict=True)),
    lambda v: {"macs": float(v @ SIZES), "params": float(v @ SIZES), "size_bytes": 4 * float(v @ SIZES)},
    weights_left=lambda v: dict(zip("ab", v * SIZES, strict=True)),
)
EIGHT = CompressionSpace(
    tuple(
        Knob(n, 8, 32, choices=(8, 32), facts={"params": s}, kind="int8_switch")
        for n, s in zip("ab", SIZES, strict=True)
    ),
    lambda v: {"bits": float(v @ SIZES) / 400, "size_bytes": float(v @ SIZES) / 8},
)
JOINT = joint_space({"prune": PRUNED, "quantize": EIGHT}, 400)


def test_knobs_have_their_learners_name_and_all_costs_are_offered() -> None:
    assert JOINT.names == ["prune:a", "prune:b", "quantize:a", "quantize:b"]
    assert JOINT.of_kind("int8_switch").tolist() == [False, False, True, True]
    plan = {"prune:a": 0.5, "prune:b": 1.0, "quantize:a": 8, "quantize:b": 32}
    assert JOINT.costs(plan) == {"macs": 350, "params": 350, "bits": 26, "size_bytes": 50 + 1200}


def test_limits_of_one_learner_each_are_separate_and_move_its_knobs_only() -> None:
    limits = {"macs": 200.0, "bits": 14.0}
    assert [(part.names, dict(own)) for part, own in JOINT.separate(limits)] == [
        (["prune:a", "prune:b"], {"macs": 200.0}), (["quantize:a", "quantize:b"], {"bits": 14.0}),
    ]  # fmt: skip
    assert JOINT.uniform(limits) == pytest.approx(
        {"prune:a": 0.5, "prune:b": 0.5, "quantize:a": 32, "quantize:b": 8}
    )
    moved = JOINT.fit_to_target(JOINT.decode(np.ones(4)), {"bits": 14.0})
    assert (moved["prune:a"], moved["prune:b"]) == (1, 1)
    assert JOINT.costs(moved)["bits"] == 14


def test_a_limit_of_both_is_kept_together_with_8_bits_switched_on_first() -> None:
    assert JOINT.separate({"size_bytes": 400.0}) == JOINT.separate({"macs": 200.0, "size_bytes": 400.0}) == []
    assert JOINT.uniform({"size_bytes": 400.0}) == {"prune:a": 1, "prune:b": 1, "quantize:a": 8, "quantize:b": 8}
    tight = JOINT.uniform({"size_bytes": 200.0})
    assert (tight["prune:a"], tight["prune:b"]) == pytest.approx((0.5, 0.5), abs=0.01)
    assert JOINT.meets(heuristic_plan(JOINT, {"size_bytes": 200.0}), {"size_bytes": 200.0})


def test_settings_of_a_search_are_left_as_they_are() -> None:
    rate = Knob("finetune.lr", 1e-4, 1e-1, scale="log", kind="setting", default=1e-2)
    space = JOINT.with_free((rate,))
    for limits in ({"macs": 200.0, "bits": 14.0}, {"size_bytes": 200.0}):
        assert space.uniform(limits) == pytest.approx({**JOINT.uniform(limits), "finetune.lr": 1e-2})
        plan = {**JOINT.decode(np.ones(4)), "finetune.lr": 3e-4}
        assert space.fit_to_target(plan, limits)["finetune.lr"] == pytest.approx(3e-4)


def test_a_space_of_one_learner_has_no_separate_parts() -> None:
    assert PRUNED.separate({"macs": 200.0}) == []
    assert PRUNED.parts == (PRUNED,)


def test_two_learners_of_one_cost_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"learner: prune and again both change macs\. Remedy: keep one of them"):
        joint_space({"prune": PRUNED, "again": PRUNED}, 400)
