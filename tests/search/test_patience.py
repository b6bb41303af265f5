"""A search that does not gain over the plan without a search ends before its budget."""

from __future__ import annotations

from typing import Any

import pytest

from pfray.search._patience import LEAST, is_without_gain
from tests.search.toy import PLANS, drive, make

FIRST = ("allocate", "uniform")
WORSE = (-1.5, -1.2, -1.4, -1.1, -1.3, -1.0, -1.6, -1.2)


def records(*own: float | None, origin: str = "tpe") -> list[dict[str, Any]]:
    """The first plans, of scores -1 and -2 with a standard error of 0.1, then trials of the searcher's own."""
    scored = [("allocate", -1.0), ("uniform", -2.0), *((origin, score) for score in own)]
    return [{"trial": trial, "origin": origin, "score": score, "standard_error": None if score is None else 0.1}
            for trial, (origin, score) in enumerate(scored)]  # fmt: skip


@pytest.mark.parametrize(("found", "ends"), [
    (records(*WORSE, -0.91), True),  # 9 of 20 less 2
    (records(*WORSE), False),
    (records(*WORSE, -0.89), False),  # better by more than 0.1
    (records(*WORSE[:-1], None, None), True),  # failed trials are no gain
    (records(*WORSE, -1.1, origin="tpe, random start"), False),  # nothing was learned yet
    (records(*WORSE, -1.1)[1:], False),  # the first plan is not finished
    ([{**record, "standard_error": None} for record in records(*WORSE, -1.1)], False),
])  # fmt: skip
def test_it_ends_after_its_share_of_trials_none_of_which_beats_the_first_plan_by_its_error(found, ends):
    assert is_without_gain(found, FIRST, trials=20, patience=0.5) is ends
    assert not is_without_gain(found, FIRST, trials=20, patience=1.0)
    assert not is_without_gain(found, (), trials=20, patience=0.5)


def test_a_few_trials_say_nothing():
    for count in (LEAST - 1, LEAST):
        assert is_without_gain(records(*[-1.5] * count), FIRST, trials=20, patience=0.1) == (count == LEAST)


def test_a_used_up_budget_is_no_end_without_gain():
    assert is_without_gain(records(*[-1.5] * 10), FIRST, trials=13, patience=0.5)
    assert not is_without_gain(records(*[-1.5] * 10), FIRST, trials=12, patience=0.5)


def outcome(entry: dict[str, Any], gain: float) -> dict[str, Any]:
    score = gain if entry["trial"] == 5 else -0.1 * entry["trial"]
    return {"score": score, "standard_error": 0.2, "training_iteration": 1}


@pytest.mark.parametrize(("patience", "gain", "trials"), [
    (0.5, 0.2, 14), (0.45, 0.2, 13), (0.25, 0.2, 11), (1.0, 0.2, 24), (0.5, 0.21, 24),
])  # fmt: skip
def test_a_searcher_stops_asking(patience, gain, trials, tmp_path):
    """Of 24 trials 21 are its own: of these it makes 10.5 or 9.45, rounded up, but at least 8."""
    assert len(PLANS) == 3
    searcher = make("random", tmp_path, trials=24, patience=patience)
    entries = drive(searcher, outcome=lambda entry: outcome(entry, gain))
    assert (len(entries), searcher.finished(), searcher.gave_up()) == (trials, True, trials < 24)

    again = make("random", tmp_path, trials=24, patience=patience)
    assert again.resume() is None
    assert (len(again.records), again.finished(), again.gave_up()) == (trials, True, trials < 24)
    # Who insists goes on.
    insisting = make("random", tmp_path, trials=24, patience=1.0)
    insisting.resume()
    assert len(drive(insisting, outcome=lambda entry: outcome(entry, gain))) == 24 - trials
