"""A search that does not gain over the plan without a search ends before its budget."""

from __future__ import annotations

from typing import Any

import pytest

from pfray.search._patience import is_without_gain
from tests.search.toy import PLANS, drive, make

FIRST = ("allocate", "uniform")


def records(*own: float | None, origin: str = "tpe") -> list[dict[str, Any]]:
    """The first plans, of scores -1 and -2 with a standard error of 0.1, then trials of the searcher's own."""
    scored = [("allocate", -1.0), ("uniform", -2.0), *((origin, score) for score in own)]
    return [{"trial": trial, "origin": origin, "score": score, "standard_error": None if score is None else 0.1}
            for trial, (origin, score) in enumerate(scored)]  # fmt: skip


@pytest.mark.parametrize(("found", "ends"), [
    (records(-1.5, -0.91, -1.2, -1.0), True),  # four of ten less two
    (records(-1.5, -0.91, -1.2), False),
    (records(-1.5, -0.89, -1.2, -1.0), False),  # better by more than 0.1
    (records(-1.5, -1.2, None, None), True),  # failed trials are no gain
    (records(-1.5, -1.4, -1.2, -1.1, origin="tpe, random start"), False),  # nothing was learned yet
    (records(-1.5, -1.4, -1.2, -1.1)[1:], False),  # the first plan is not finished
    ([{**record, "standard_error": None} for record in records(-1.5, -1.4, -1.2, -1.1)], False),
])  # fmt: skip
def test_it_ends_after_its_share_of_trials_none_of_which_beats_the_first_plan_by_its_error(found, ends):
    assert is_without_gain(found, FIRST, trials=10, patience=0.5) is ends
    assert not is_without_gain(found, FIRST, trials=10, patience=1.0)
    assert not is_without_gain(found, (), trials=10, patience=0.5)


def outcome(entry: dict[str, Any], gain: float) -> dict[str, Any]:
    score = gain if entry["trial"] == 5 else -0.1 * entry["trial"]
    return {"score": score, "standard_error": 0.2, "training_iteration": 1}


@pytest.mark.parametrize(("patience", "gain", "trials"), [
    (0.5, 0.2, 10), (0.25, 0.2, 7), (1.0, 0.2, 16), (0.5, 0.21, 16),
])  # fmt: skip
def test_a_searcher_stops_asking(patience, gain, trials, tmp_path):
    """Of 16 trials 13 are its own: of these it makes 6.5 or 3.25, rounded up."""
    assert len(PLANS) == 3
    searcher = make("random", tmp_path, patience=patience)
    entries = drive(searcher, outcome=lambda entry: outcome(entry, gain))
    assert (len(entries), searcher.finished(), searcher.gave_up()) == (trials, True, trials < 16)

    again = make("random", tmp_path, patience=patience)
    assert again.resume() is None
    assert (len(again.records), again.finished(), again.gave_up()) == (trials, True, trials < 16)
    # Who insists goes on.
    insisting = make("random", tmp_path, patience=1.0)
    insisting.resume()
    assert len(drive(insisting, outcome=lambda entry: outcome(entry, gain))) == 16 - trials
