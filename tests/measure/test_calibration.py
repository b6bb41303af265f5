"""How many inputs a calibration takes by default."""

from __future__ import annotations

import pytest

from pfray.measure.calibration import affordable_inputs, fewer_inputs_note


@pytest.mark.parametrize(
    ("macs", "inputs"), [(0, 1000), (500_000_000, 1000), (1_200_000_000, 1000), (9_870_000_000, 122), (10**12, 50)]
)
def test_the_work_of_a_calibration_is_bounded_and_small_networks_take_a_thousand(macs, inputs):
    assert affordable_inputs(macs) == inputs


def test_fewer_inputs_than_usual_are_told():
    assert fewer_inputs_note("mine", 152, 5000, 9_870_000_000) == [
        "mine calibrates on 152 training inputs instead of 1,000, because one costs 9.9 billion multiply-adds; "
        "images: 1000 in its settings takes them all"
    ]
    assert fewer_inputs_note("mine", 152, 600, 9_870_000_000) == [
        "mine calibrates on 152 training inputs instead of 600, because one costs 9.9 billion multiply-adds; "
        "images: 600 in its settings takes them all"
    ]
    assert fewer_inputs_note("mine", 1000, 5000, 10) == []
    # All that there are.
    assert fewer_inputs_note("mine", 152, 100, 9_870_000_000) == []
