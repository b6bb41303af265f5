from __future__ import annotations

from typing import Any

from benchmarks.studies import search_quality


def quality(accuracies: list[float], test: float) -> dict[str, Any]:
    origins = ["allocate", "uniform", "heuristic", *["searched"] * (len(accuracies) - 3)]
    return {"accuracies": accuracies, "origins": origins, "origin": "searched", "seen": max(accuracies),
            "validation": 0.5, "test": test, "trials": 4, "seconds": 8.0, "scoring": 6.0}  # fmt: skip


def test_a_plan_is_passed_by_two_points_and_not_before():
    run = quality([0.40, 0.20, 0.30, 0.41, 0.421, 0.5], 0.5)
    assert search_quality.trials_to_pass(run, 0.2) == 1
    assert search_quality.trials_to_pass(run, 0.4) == 5
    assert search_quality.trials_to_pass(run, 0.49) is None


def test_the_table_of_searchers_has_means_spreads_and_the_trials_to_pass():
    runs = [quality([0.40, 0.20, 0.30, 0.43], 0.50), quality([0.40, 0.20, 0.30, 0.41], 0.60)]
    rows = search_quality.table({"allocate": [quality([0.4, 0.2], 0.4)], "tpe": runs}).splitlines()
    assert rows[2] == "| allocate | 1 | 40.00 | 50.00 | 40.00 |  |  |  |"
    assert rows[3] == (
        "| tpe | 2 | 42.00 (41.00 .. 43.00) | 50.00 (50.00 .. 50.00) | 55.00 (50.00 .. 60.00) | 1, 1 | 4, never | 30 |"
    )
