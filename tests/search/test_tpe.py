"""What the tree-structured Parzen estimator has of its own; what it shares is in the contract's tests."""

from __future__ import annotations

from pfray.search.tpe import GOOD, kept_trials


def test_of_many_trials_the_best_and_the_latest_are_looked_at_in_their_order():
    told = [({"knob": i}, None if i % 50 == 7 else -float(i)) for i in range(300)]
    assert kept_trials(told, 300) == told
    kept = [plan["knob"] for plan, _ in kept_trials(told, 100)]
    # The first are the best; 7 failed.
    assert kept[:GOOD] == [i for i in range(GOOD + 1) if i != 7]
    assert kept[GOOD:] == list(range(225, 300))
