from __future__ import annotations

import pytest

from benchmarks.studies import reward_fidelity


def test_scores_are_ranked_by_how_they_order_the_retrained_plans():
    records = [
        {"piece": [i], "retrained": r, "same order": a, "opposite": -a, "one swapped": b}
        for i, (r, a, b) in enumerate([(0.7, 1, 2), (0.8, 5, 1), (0.85, 6, 3)])
    ]
    found = reward_fidelity.correlations(records)
    assert list(found) == ["same order", "one swapped", "opposite"]
    # Ranks 2, 1, 3 against 1, 2, 3: 1 - 6 * (1 + 1) / (3 * 8).
    assert found == pytest.approx({"same order": 1.0, "one swapped": 0.5, "opposite": -1.0})
