"""What every searcher promises, whatever its algorithm: each module of pfray/search is held to all of it."""

from __future__ import annotations

import dataclasses

import pytest
from ray.tune.search import Searcher

from pfray.config.registry import find_class
from pfray.search.base import PlanSearcher
from pfray.space import Plan
from tests.search.toy import GIVEN, PLANS, SIZES, SPACE, drive, make, plans, result, score

KNOWN = {**PLANS, "given": GIVEN}


def test_settings_are_a_documented_frozen_dataclass_whose_defaults_do(name):
    found = find_class("search", name, PlanSearcher)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.settings_type().anything = 1
    for field in dataclasses.fields(found.settings_type):
        assert field.name in found.settings_type.__doc__, f"{field.name} is not explained"


def test_every_plan_is_within_its_ranges_and_on_the_target(name):
    entries = drive(make(name))
    for plan in plans(entries):
        assert list(plan) == SPACE.names
        assert all(0.0 <= value <= 0.98 for value in plan.values())
        assert 0.75 <= SPACE.costs(plan)["sparsity"] <= 0.75 + len(SIZES) / SIZES.sum()
    assert [entry["trial"] for entry in entries] == list(range(len(entries)))


def test_the_plans_that_need_no_search_come_first(name):
    entries = drive(make(name))
    own = {"uniform": ["uniform"], "allocate": ["allocate"], "heuristic": ["heuristic"], "given": ["given"]}
    expected = own.get(name, ["uniform", "heuristic", "allocate"])
    assert [entry["origin"] for entry in entries[: len(expected)]] == expected
    assert [entry["plan"] for entry in entries[: len(expected)]] == [KNOWN[origin] for origin in expected]
    assert {entry["origin"] for entry in entries[len(expected) :]} <= {name, f"{name}, random start"}


def test_fewer_trials_than_first_plans_run_the_first_of_them(name):
    searcher = make(name, trials=1)
    assert [entry["origin"] for entry in drive(searcher)] == [name if name in KNOWN else "uniform"]
    assert searcher.finished()


def test_a_searcher_of_one_plan_counts_to_one(name):
    assert make(name, trials=30).trials == (1 if name in KNOWN else 30)


def test_after_the_budget_it_is_finished_and_says_so(name, open_ended):
    searcher = make(open_ended, trials=12)
    assert not searcher.finished()
    assert len(drive(searcher, 11)) == 11
    assert not searcher.finished()
    assert len(drive(searcher)) == 1
    assert searcher.finished()
    assert searcher.suggest("one more") == Searcher.FINISHED
    closed = make(name)
    drive(closed)
    assert closed.finished()


def test_a_trial_that_is_running_is_not_finished(name):
    searcher = make(name, trials=1)
    searcher.suggest("a")
    assert searcher.suggest("b") is None
    assert not searcher.finished()
    searcher.on_trial_complete("a", {"score": 0.5})
    assert searcher.suggest("b") == Searcher.FINISHED
    assert searcher.finished()


def test_a_trial_whose_worker_died_is_suggested_again_before_any_other(open_ended):
    searcher = make(open_ended, trials=12)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    searcher.on_trial_complete("a", None, error=True)
    assert searcher.suggest("c") == first
    searcher.on_trial_complete("b", result(second["plan"]))
    searcher.on_trial_complete("c", result(first["plan"]))
    assert len(drive(searcher)) == 10
    assert [record["trial"] for record in searcher.records] == [1, 0, *range(2, 12)]
    assert all(record["error"] is None for record in searcher.records)
    assert searcher.finished()


def test_the_same_seed_gives_the_same_plans_and_another_seed_others(open_ended):
    first, again, other = (plans(drive(make(open_ended, seed=seed))) for seed in (1, 1, 2))
    assert first == again
    assert first[:3] == other[:3]
    assert all(plan not in first for plan in other[3:])


def test_no_plan_is_tried_twice_even_with_eight_at_once(open_ended):
    searcher = make(open_ended, trials=32)
    out: list[tuple[str, dict]] = []
    seen: list[Plan] = []
    for number in range(32):
        entry = searcher.suggest(str(number))
        out.append((str(number), entry))
        seen.append(entry["plan"])
        if len(out) == 8:
            trial_id, done = out.pop(0)
            searcher.on_trial_complete(trial_id, result(done["plan"]))
    assert len({tuple(plan.values()) for plan in seen}) == 32
    for trial_id, done in out:
        searcher.on_trial_complete(trial_id, result(done["plan"]))
    assert searcher.finished()
    assert searcher.count()["finished"] == 32


def test_the_best_is_that_of_the_highest_score_and_of_equals_the_earlier(open_ended):
    searcher = make(open_ended, trials=6)
    scores = [0.1, 0.5, 0.9, 0.2, 0.9, 0.3]
    drive(searcher, outcome=lambda entry: {"score": scores[entry["trial"]]})
    assert (searcher.best()["trial"], searcher.best()["score"]) == (2, 0.9)
    assert searcher.count() == {"finished": 6, "failed": 0, "best": 2}


def test_failed_trials_are_recorded_with_their_cause_and_never_best(open_ended):
    outcomes = {
        1: {"score": float("nan")},
        3: {"score": float("nan"), "error": "ValueError: broke", "seconds": 0.1},
        5: None,
        7: {"score": float("inf")},
        9: {},
        14: {"score": None},
    }
    searcher = make(open_ended, trials=20)
    entries = drive(searcher, outcome=lambda entry: outcomes.get(entry["trial"], result(entry["plan"])))
    # Those whose worker died are tried three times.
    assert [entry["trial"] for entry in entries] == sorted([*range(20), 5, 5, 9, 9, 14, 14])
    failed = {record["trial"]: record["error"] for record in searcher.records if record["error"]}
    assert failed == {
        1: "the score is not a number",
        3: "ValueError: broke",
        5: "its worker died and retrying did not help",
        7: "the score is not a number",
        9: "its worker died and retrying did not help",
        14: "its worker died and retrying did not help",
    }
    assert all(searcher.records[number]["score"] is None for number in failed)
    assert searcher.best()["trial"] not in failed
    assert searcher.best()["score"] == max(score(e["plan"]) for e in entries if e["trial"] not in failed)
    assert (searcher.count()["finished"], searcher.count()["failed"]) == (14, 6)


def test_numbers_that_are_none_are_not_written_and_the_search_can_go_on(open_ended, tmp_path):
    strange = {"score": 0.5, "standard_error": float("nan"), "measurement/loss": float("inf"), "measurement/macs": None}
    drive(make(open_ended, tmp_path / "search"), 2, outcome=lambda entry: {**strange, "measurement/accuracy": 0.5})
    again = make(open_ended, tmp_path / "search")
    again.resume()
    assert [record["standard_error"] for record in again.records] == [None, None]
    assert again.records[0]["measurement"] == {"loss": None, "macs": None, "accuracy": 0.5}


def test_a_search_whose_trials_all_fail_ends_without_a_best_one(name):
    searcher = make(name, trials=14)
    drive(searcher, outcome=lambda entry: None)
    assert searcher.finished()
    assert searcher.best() is None
    assert searcher.count() == {"finished": 0, "failed": len(searcher.records), "best": None}


def test_a_result_of_a_trial_it_never_suggested_is_ignored(name):
    searcher = make(name)
    searcher.on_trial_complete("a stranger", {"score": 5.0})
    assert searcher.records == []


def test_a_reward_that_never_changes_ends_no_search(open_ended):
    searcher = make(open_ended, trials=25)
    entries = drive(searcher, outcome=lambda entry: {"score": 0.25})
    assert len({tuple(plan.values()) for plan in plans(entries)}) == 25
    assert {record["score"] for record in searcher.records} == {0.25}


def test_after_any_kind_of_failure_the_search_goes_on(open_ended):
    failures = [{"score": float(v)} for v in ("inf", "-inf", "nan")] + [{"score": None}, None, {"error": "broke"}]
    searcher = make(open_ended, trials=30)
    entries = drive(searcher, outcome=lambda e: failures[e["trial"] % 7] if e["trial"] % 7 < 6 else result(e["plan"]))
    tried = {entry["trial"]: entry["plan"] for entry in entries}
    assert len(tried) == len(searcher.records) == 30
    assert [record["score"] is not None for record in searcher.records] == [number % 7 == 6 for number in range(30)]
    assert [plan for plan, _ in searcher.history] == list(tried.values())


def test_a_worker_that_cannot_be_set_up_ends_the_search_and_costs_no_trial(name):
    searcher = make(name)
    assert searcher.suggest("a") is not None
    searcher.on_trial_complete("a", {"score": float("nan"), "setup_error": "a worker cannot import 'mine'"})
    assert searcher.records == []
    assert str(searcher.failure) == "a worker cannot import 'mine'"
    assert searcher.suggest("b") == Searcher.FINISHED
