from __future__ import annotations

import numpy as np
import pytest

from pfray.config.search_space import as_knob
from pfray.space import CompressionSpace, Knob


def test_a_logarithmic_range_is_halved_in_the_logarithm():
    knob = as_knob("finetune.lr", "loguniform(1e-4, 1e-1)", 0.02)
    space = CompressionSpace((Knob("a", 0.0, 1.0), knob), lambda values: {"macs": float(values[0])})
    assert space.decode(np.array([0.5, 1 / 3]))["finetune.lr"] == pytest.approx(1e-3)
    assert space.encode({"a": 0.0, "finetune.lr": 1e-2})[1] == pytest.approx(2 / 3)
    assert space.uniform({"macs": 0.4}) == pytest.approx({"a": 0.4, "finetune.lr": 0.02})


def test_whole_numbers_stay_whole_and_a_default_outside_moves_to_the_end():
    knob = as_knob("learner.interval", "integers(2, 16)", 40)
    assert (knob.integer, knob.default) == (True, 16)
    space = CompressionSpace((Knob("a", 0.0, 1.0), knob), lambda values: {"macs": float(values[0])})
    assert space.decode(np.array([0.5, 0.4]))["learner.interval"] == 8.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("uniform(1, 0)", "lower end is not below"),
        ("loguniform(0, 1)", "is above 0"),
        ("integers(1.5, 3)", "not whole"),
        ("normal(0, 1)", "is no range. Allowed: uniform(low, high)"),
        ("uniform(1)", "is no range"),
        ("__import__('os')", "is no range"),
    ],
)
def test_what_is_no_range_is_refused(text, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        as_knob("finetune.lr", text, 0.1)
    assert words in str(caught.value)
