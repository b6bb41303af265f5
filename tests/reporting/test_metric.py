"""The task's metric in words, whatever its name and direction."""

from __future__ import annotations

import pytest

from pfray.reporting.metric import PrintedMetric

MSE = PrintedMetric("mse", higher_is_better=False, is_share=False)


@pytest.mark.parametrize(("metric", "measured", "text"), [
    (PrintedMetric(), 0.978, "97.8 %"), (PrintedMetric(), 1.5, "1.5"), (PrintedMetric(), -0.25, "-0.25"),
    (PrintedMetric("error", higher_is_better=False), -0.031, "3.1 %"),
    (PrintedMetric("gain", is_share=False), 0.5, "0.5"),
    (MSE, -0.01234, "0.01234"), (MSE, 0.0, "0"),
])  # fmt: skip
def test_a_share_is_in_percent_and_any_other_number_plain_with_its_own_sign(metric, measured, text) -> None:
    assert metric.text(measured) == text


def test_differences_are_points_of_a_share_and_plain_for_any_other() -> None:
    assert PrintedMetric().difference(0.975, 0.978) == "-0.30 points"
    assert PrintedMetric("error", higher_is_better=False).difference(-0.05, -0.03) == "+2.00 points"
    assert MSE.difference(-0.014, -0.0123) == "+0.0017"


def test_a_summary_without_a_metric_has_accuracy_and_wrong_values_are_left_out() -> None:
    assert PrintedMetric.parse({}) == PrintedMetric("accuracy", higher_is_better=True, is_share=True)
    assert PrintedMetric.parse({"name": None, "higher_is_better": "no", "is_share": 0}) == PrintedMetric()
    assert PrintedMetric.parse({"name": "mse", "higher_is_better": False, "is_share": False}) == MSE
    assert (PrintedMetric().title, MSE.title) == ("accuracy", "mse (lower is better)")
