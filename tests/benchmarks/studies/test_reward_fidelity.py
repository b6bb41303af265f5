from __future__ import annotations

import pytest

from benchmarks.studies import reward_fidelity


def test_scores_are_ranked_by_how_they_order_the_retrained_plans():
    records = [
        {"piece": [i], "retrained": r, "accuracy": a, "agreement": -a, "accuracy, after 10 steps": b, "seconds": 1.0}
        for i, (r, a, b) in enumerate([(0.7, 1, 2), (0.8, 5, 1), (0.85, 6, 3)])
    ]
    found = reward_fidelity.correlations(records)
    assert list(found) == ["accuracy", "accuracy, after 10 steps", "agreement"]
    # Ranks 2, 1, 3 against 1, 2, 3: 1 - 6 * (1 + 1) / (3 * 8).
    assert found == pytest.approx({"accuracy": 1.0, "accuracy, after 10 steps": 0.5, "agreement": -1.0})
