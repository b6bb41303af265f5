"""Goals that a result misses, as a report and an error say it."""

from __future__ import annotations

import pytest

from pfray.reporting.goals import missed_goals
from pfray.reporting.remarks import remarks
from pfray.reporting.summary import Summary
from tests.summaries import summary


def test_a_drop_of_just_the_allowed_size_is_allowed() -> None:
    kept = {"teacher": {"accuracy": 0.9}, "compressed": {"accuracy": 0.8}}
    assert missed_goals(summary(**kept, target={"max_drop": 0.1})) == []
    (missed,) = missed_goals(summary(**kept, target={"max_drop": 0.099}))
    assert missed.remark() == "the goal is missed: 10.00 points lost, 9.90 allowed (target.max_drop)"
    assert missed.error().startswith(
        "the goal is missed: 10.00 points lost; target.max_drop allows 9.90. The files are complete. Remedy: a milder "
    )


def timed(latency: float, limit: float | None) -> Summary:
    limits = {} if limit is None else {"latency_ms": limit}
    return Summary.parse({
        "target": {"latency_ms": "0.5x"}, "limits": limits,
        "exported": {"latency_ms": latency, "teacher_latency_ms": 4.0},
    })  # fmt: skip


def test_milliseconds_are_compared_with_the_absolute_limit_and_5_per_cent_of_doubt() -> None:
    (missed,) = missed_goals(timed(2.2, 2.0))
    assert missed.remark() == "the goal is missed: 2.20 ms, 2.10 ms allowed (target.latency_ms)"
    assert "target.latency_ms allows 2.10 ms. The files are complete. Remedy: a lower target.lat" in missed.error()
    assert missed.remark() in remarks(timed(2.2, 2.0))
    assert remarks(timed(2.09, 2.0)) == []
    assert missed_goals(timed(2.2, None)) == []


@pytest.mark.parametrize("accuracy", [None, "0.5", [1]])
def test_a_goal_whose_numbers_are_not_known_is_not_missed(accuracy) -> None:
    assert missed_goals(summary(compressed={"accuracy": accuracy}, target={"max_drop": 0.001})) == []
