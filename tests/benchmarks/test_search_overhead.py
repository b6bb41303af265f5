from __future__ import annotations

import pytest

from benchmarks import search_overhead
from tests.benchmarks.runs import trial


def test_workers_that_never_wait_have_no_overhead():
    trials = [trial(12.0, 2.0), trial(12.0, 2.0), trial(14.0, 2.0), trial(14.0, 2.0)]
    assert search_overhead.overhead(trials, parallel=2) == pytest.approx(1.0)


def test_waiting_between_trials_and_a_worker_that_starts_late_are_overhead():
    # Worker 1: 10..12 and 13..15, one second apart. Worker 2: 11..13 and 14..16. 6 s for 8 s of computing on two.
    trials = [trial(12.0, 2.0), trial(15.0, 2.0), trial(13.0, 2.0), trial(16.0, 2.0)]
    assert search_overhead.first_start(trials) == 10.0
    assert search_overhead.overhead(trials, parallel=2) == pytest.approx(1.5)
    assert search_overhead.overhead(trials, parallel=1) == pytest.approx(0.75)


def test_a_trial_without_a_result_is_left_out_of_the_computing():
    trials = [trial(12.0, 2.0), trial(0.0, None), trial(16.0, 2.0)]
    assert search_overhead.overhead(trials, parallel=1) == pytest.approx(6 / 4)


def test_the_start_is_cut_into_parts_that_add_up():
    seen = {"load": 103.0, "start ray": 105.0, "search": 109.0}
    parts = search_overhead.start_breakdown(100.0, seen, 116.0)
    assert [seconds for _, seconds in parts] == [3.0, 2.0, 4.0, 7.0]
