from __future__ import annotations

import pytest

from benchmarks import weak_scaling
from tests.benchmarks.runs import trial


def test_the_rate_is_that_of_the_time_in_which_all_slots_were_taken():
    # Two slots: 0..4, 4..8, 8..12, and from 2 on 2..6, 7..11, the second one a second late.
    trials = [trial(end, end - begin) for begin, end in ((0, 4), (4, 8), (8, 12), (2, 6), (7, 11))]
    assert weak_scaling.window(trials, 2) == (2, 8)
    rate, busy = weak_scaling.rates(trials, 2)
    assert rate == pytest.approx(60 * 3 / 6)
    assert busy == pytest.approx(11 / 12)
