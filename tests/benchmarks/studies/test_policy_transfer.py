from __future__ import annotations

from statistics import fmean

import pytest

from benchmarks.studies import policy_transfer


def test_iterations_are_counted_until_a_student_has_the_reward_wanted():
    rewards = [0.1, 0.1, 0.1, 0.1, 0.6, 0.2, 0.2, 0.3, 0.3, 0.5]
    best, mean = (policy_transfer.by_iteration(rewards, of) for of in (max, fmean))
    assert best == [0.6, 0.5]
    assert mean == pytest.approx([0.2, 0.3])
    assert [policy_transfer.iterations_to(wanted, mean) for wanted in (0.1, 0.25, 0.4)] == [1, 2, None]
    assert policy_transfer.iterations_to(0.6, best) == 1
