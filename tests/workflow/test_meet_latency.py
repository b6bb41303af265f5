"""Plans moved onto a latency limit, with times made up."""

from __future__ import annotations

from typing import Any

import pytest

from pfray.space import CompressionSpace, Knob, Plan
from pfray.workflow import meet_latency
from pfray.workflow.latency_model import PredictedCosts
from pfray.workflow.meet_latency import TimedPlan


def meet(
    limit: float, slower: float, steps: tuple[float, ...] = (), jump: float = 1.0
) -> tuple[TimedPlan, list[str]]:
    """One knob of 100 MACs and 10 ms, moved onto a limit.

    Files take ``slower`` times as long as predicted, and above a value of ``jump`` twice that.
    """
    inner = lambda values: {"macs": 100 * float(values[0])}  # noqa: E731
    costs = PredictedCosts(inner, {"float": [[0.0, 100.0], [0.0, 10.0]]}, (0, 0), 10.0)
    space = CompressionSpace((Knob("a", min(steps, default=0.0), 1.0, choices=steps),), costs)
    told: list[str] = []
    plan = space.uniform({"latency_ms": limit})

    def share_of(timed: Plan) -> float:
        return slower * timed["a"] * (2 if timed["a"] > jump else 1)

    held = meet_latency._meet(plan, space, {"latency_ms": limit}, share_of, told.append)
    return held, told


def test_a_plan_whose_file_is_fast_enough_is_left_as_it_is():
    held, told = meet(5.0, 0.92)
    assert held == TimedPlan({"a": pytest.approx(0.5)}, pytest.approx(0.46))
    assert told == ["4.60 ms of 5.00 ms"]


def test_a_hundredth_too_much_is_no_reason_to_compress_further():
    assert meet(5.0, 1.01)[0] == TimedPlan({"a": pytest.approx(0.5)}, pytest.approx(0.505))


def test_a_plan_whose_file_is_too_slow_is_compressed_by_what_it_is_too_slow():
    held, told = meet(5.0, 1.25)
    assert held.moved == "further"
    assert held.plan["a"] == pytest.approx(0.5 * 0.95 / 1.25)
    assert held.share == pytest.approx(0.475)
    assert told == ["6.25 ms of 5.00 ms", "4.75 ms of 5.00 ms"]


def test_a_plan_whose_file_is_much_faster_than_it_has_to_be_is_compressed_less():
    held, told = meet(5.0, 0.7)
    assert held == TimedPlan({"a": pytest.approx(0.95 * 5 / 7)}, pytest.approx(0.475), moved="less")
    assert told == ["3.50 ms of 5.00 ms", "4.75 ms of 5.00 ms"]


def test_a_milder_plan_that_is_too_slow_is_not_taken():
    held, told = meet(5.0, 0.7, steps=(0.0, 0.5, 0.75, 1.0))
    assert held == TimedPlan({"a": 0.5}, pytest.approx(0.35))
    assert told == ["3.50 ms of 5.00 ms"]
    steep = meet(5.0, 0.7, jump=0.6)
    assert steep[0] == TimedPlan({"a": pytest.approx(0.5)}, pytest.approx(0.35))
    assert steep[1] == ["3.50 ms of 5.00 ms", "9.50 ms of 5.00 ms"]


def test_a_plan_that_cannot_be_compressed_further_is_timed_once():
    held, told = meet(5.0, 3.0, steps=(0.4, 0.5, 1.0))
    assert told == ["15.0 ms of 5.00 ms", "12.0 ms of 5.00 ms"]
    assert held == TimedPlan({"a": 0.4}, pytest.approx(1.2), moved="further")


def test_plans_that_were_timed_are_read_again_and_equal_ones_are_timed_once(context, recipe, tmp_path, monkeypatch):
    inner = lambda values: {"macs": 100 * float(values[0])}  # noqa: E731
    costs = PredictedCosts(inner, {"float": [[0.0, 100.0], [0.0, 10.0]]}, (0, 0), 10.0)
    space = CompressionSpace((Knob("a", 0.0, 1.0),), costs)
    timings: list[Plan] = []

    def share(plan: Plan, *_: Any) -> float:
        timings.append(plan)
        return 0.46

    monkeypatch.setattr(meet_latency, "_share", share)
    plans = {"uniform": {"a": 0.5}, "allocate": {"a": 0.3}, "compressed": {"a": 0.5}}
    told: list[tuple[int, str]] = []
    path = tmp_path / "timed.json"

    def once() -> dict[str, TimedPlan]:
        done = lambda count, words: told.append((count, words))  # noqa: E731
        return meet_latency.meet_latency(plans, space, {"latency_ms": 5.0}, recipe, context, path, done)

    found = once()
    assert found == {name: TimedPlan(plan, 0.46) for name, plan in plans.items()}
    assert timings == [{"a": 0.5}, {"a": 0.3}]
    assert told[0] == (0, "uniform: 4.60 ms of 5.00 ms")
    assert told[-1] == (3, "done")
    assert once() == found
    assert len(timings) == 2
