from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pfray.measure.evaluation import Measurement
from pfray.objective import OBJECTIVES, Objective, Thresholds, score, standard_error

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


def test_each_factor_of_ddc_is_a_half_at_its_threshold():
    # 0.9 of the accuracy, half of the time and a quarter of the parameters are left.
    assert of("ddc", accuracy=0.9, latency=0.5, compression=0.25) == pytest.approx(0.5**3)
    # At the paper's own thresholds: R1 = 1 - 1 / (1 + e^0), R2 = 1 / (1 + e^3), R3 = 1 / (1 + e^-5.25).
    assert of("ddc") == pytest.approx(0.5 * 0.0474259 * 0.9947799, rel=1e-6)
    # R1 = 1 - 1 / (1 + e^1.5), R2 = 1 / (1 + e^-1.5), R3 = 1 / (1 + e^-1.5).
    assert of("ddc", accuracy=0.8, latency=0.6, compression=0.35) == pytest.approx(0.8175745**3, rel=1e-6)


def test_ddc_counts_the_parameters_left_whatever_is_limited():
    assert of("ddc", "macs") == of("ddc") == of("ddc", "stored_bits")


@pytest.mark.parametrize(
    ("accuracy", "smaller", "time", "reward"),
    [(76.58, 6.8, 0.44, 0.0705), (64.58, 28.3, 0.33, 0.0651), (81.44, 1.0, 1.0, 5.55e-8)],
)
def test_ddc_of_students_of_a_vgg_11(accuracy, smaller, time, reward):
    """A student that is ten points worse has the lower reward, however much smaller it is: nothing is flat."""
    teacher = replace(TEACHER, accuracy=0.8144, nonzero_params=579_098, latency_ms=1.0)
    student = replace(teacher, accuracy=accuracy / 100, nonzero_params=round(579_098 / smaller), latency_ms=time)
    assert score(Objective("ddc"), student, teacher) == pytest.approx(reward, rel=5e-3)


def test_ddc_is_finite_however_slow_a_student_is():
    slow = replace(STUDENT, latency_ms=1e4)
    assert score(Objective("ddc"), slow, TEACHER) == 0.0


def test_more_accuracy_and_less_cost_never_score_less():
    better = replace(STUDENT, accuracy=0.82, nonzero_params=240, macs=19_000, latency_ms=0.9, agreement=-0.39)
    for name in OBJECTIVES:
        goal = Objective(name, "nonzero_params", Thresholds(accuracy=1, latency=0.1, compression=0.9))
        assert score(goal, better, TEACHER) > score(goal, STUDENT, TEACHER), name


def test_the_standard_error_is_carried_through_the_score():
    assert standard_error(Objective("accuracy"), STUDENT, TEACHER) == pytest.approx(0.01)
    assert standard_error(Objective("agreement"), STUDENT, TEACHER) == pytest.approx(0.02)
    assert standard_error(Objective("amc"), STUDENT, TEACHER) == pytest.approx(0.01 * math.log(250))
    assert standard_error(Objective("accuracy"), TEACHER, TEACHER) is None
