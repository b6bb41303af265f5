"""When a search ends before its budget: it has learned from many trials, and none beat the plan without a search."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pfray.search._trial_log import RANDOM_START

# Trials that a search has learned from at least before it may end: fewer say nothing.
LEAST = 8


def is_without_gain(
    records: Sequence[Mapping[str, Any]], first_origins: Collection[str], trials: int, patience: float
) -> bool:
    """True if no trial's score is better than trial 0's by more than that one's standard error, after so many trials.

    These are the share ``patience`` of the search's own among ``trials``, and ``LEAST``; those of its random start do
    not count, in which it has not learned yet. first_origins: origins of the plans without a search, of which trial 0
    is one. False where there is none, where its standard error is not known, and where the budget is used up.
    """
    first = next((record for record in records if record["trial"] == 0), None)
    if patience >= 1 or len(records) >= trials or not first_origins or first is None or first["standard_error"] is None:
        return False
    own = [record["origin"] for record in records if record["origin"] not in first_origins]
    learned = sum(not origin.endswith(RANDOM_START) for origin in own)
    if learned < max(LEAST, patience * (trials - len(first_origins))):
        return False
    enough = first["score"] + first["standard_error"]
    return all(record["score"] is None or record["score"] <= enough for record in records)
