from __future__ import annotations

import math

import pytest

from pfray.config import Thresholds
from pfray.measure import Measurement
from pfray.objective import COST, OBJECTIVES, Objective, score, standard_error

TEACHER = Measurement(
    accuracy=0.9, loss=0.3, params=1_000, nonzero_params=1_000, macs=50_000, latency_ms=2.0, agreement=0.0,
    stored_bits=32_000,
)  # fmt: skip
STUDENT = Measurement(
    accuracy=0.81, loss=0.5, params=1_000, nonzero_params=250, macs=20_000, latency_ms=1.0,
    accuracy_error=0.01, agreement=-0.4, agreement_error=0.02, stored_bits=8_000,
)  # fmt: skip


def of(name: str, cost: str = "nonzero_params", **thresholds: float) -> float:
    return score(Objective(name, cost, Thresholds(**thresholds)), STUDENT, TEACHER)


def test_the_scores_are_those_of_their_equations():
    assert of("accuracy") == 0.81
    assert of("agreement") == -0.4
    assert of("accuracy_and_cost") == pytest.approx(0.81 * math.log(1.75))
    assert of("amc") == pytest.approx(-0.19 * math.log(250))
    assert of("amc", "macs") == pytest.approx(-0.19 * math.log(20_000))
    # A quarter of the parameters is left, and 0.9 of the accuracy kept.
    assert of("n2n") == pytest.approx(0.75 * 1.25 * 0.9)
    assert of("n2n", "macs") == pytest.approx(0.6 * 1.4 * 0.9)
    assert of("accuracy_and_cost", "stored_bits") == pytest.approx(0.81 * math.log(1.75))


def test_each_factor_of_ddc_counts_up_to_its_threshold_and_no_further():
    # Kept 0.9 of the accuracy, half of the time left, three quarters of the cost saved.
    assert of("ddc", accuracy=0.9, latency=0.5, compression=0.75) == pytest.approx(1.0)
    assert of("ddc", accuracy=0.8, latency=0.9, compression=0.1) == pytest.approx(1.0)
    assert of("ddc", accuracy=1.0, latency=0.3, compression=0.9) == pytest.approx(0.9 * 0.6 * (0.75 / 0.9))


def test_more_accuracy_and_less_cost_never_score_less():
    from dataclasses import replace

    better = replace(STUDENT, accuracy=0.82, nonzero_params=240, macs=19_000, latency_ms=0.9, agreement=-0.39)
    for name in OBJECTIVES:
        goal = Objective(name, "nonzero_params", Thresholds(accuracy=1, latency=0.1, compression=0.9))
        assert score(goal, better, TEACHER) > score(goal, STUDENT, TEACHER), name


def test_the_standard_error_is_carried_through_the_score():
    assert standard_error(Objective("accuracy"), STUDENT, TEACHER) == pytest.approx(0.01)
    assert standard_error(Objective("agreement"), STUDENT, TEACHER) == pytest.approx(0.02)
    assert standard_error(Objective("amc"), STUDENT, TEACHER) == pytest.approx(0.01 * math.log(250))
    assert standard_error(Objective("accuracy"), TEACHER, TEACHER) is None


def test_every_cost_is_a_field_of_a_measurement():
    assert all(isinstance(getattr(TEACHER, field), int) for field in COST.values())
