"""Searches that go on after a kill, or from what another run has learned: every searcher, on the toy landscape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ray.tune.search import Searcher

from pfray.search._trial_log import read_trials
from pfray.search.base import PlanSearcher
from tests.search.toy import BEST, CENTER, LIMITS, SPACE, drive, make, plans, result, score


@pytest.mark.parametrize("stop", [1, 7, 13])
def test_a_saved_search_goes_on_as_if_it_had_not_stopped(open_ended, tmp_path, stop):
    whole = plans(drive(make(open_ended)))
    before = plans(drive(make(open_ended, tmp_path / "search"), stop))
    restored = make(open_ended, tmp_path / "search", seed=99)
    assert restored.resume() is None
    assert before + plans(drive(restored)) == whole
    assert [record["score"] for record in restored.records] == [score(plan) for plan in whole]


def test_plans_that_were_out_when_a_run_was_killed_are_suggested_again_first(name, tmp_path):
    killed = make(name, tmp_path / "search", trials=8)
    first = killed.suggest("a")
    out = killed.suggest("b")
    killed.on_trial_complete("a", result(first["plan"]))
    resumed = make(name, tmp_path / "search", trials=8)
    resumed.resume()
    assert resumed.suggest("c") == (out or Searcher.FINISHED)
    assert len(resumed.records) == 1


def test_every_finished_trial_is_one_line_of_the_trial_file(open_ended, tmp_path):
    searcher = make(open_ended, tmp_path / "search", trials=5)
    drive(searcher)
    records = read_trials(tmp_path / "search" / "trials.jsonl")
    assert records == searcher.records
    assert records[2]["plan"] == searcher.records[2]["plan"]
    assert records[2]["cost"] == SPACE.costs(records[2]["plan"])
    assert (records[2]["score"], records[2]["seconds"], records[2]["rounds"]) == (score(records[2]["plan"]), 0.5, 1)
    assert records[2]["measurement"] == {"accuracy": score(records[2]["plan"])}
    assert records[2]["error"] is None


@pytest.mark.parametrize("stop", [1, 4, 12])
def test_resuming_takes_over_a_trial_that_was_written_but_not_yet_in_the_state(
    open_ended, tmp_path, monkeypatch, stop
):
    folder = tmp_path / "search"
    killed = make(open_ended, folder)
    drive(killed, stop)
    monkeypatch.setattr(killed, "save_state", lambda: None)  # as if the kill came between the two files
    drive(killed, 1)
    resumed = make(open_ended, folder)
    resumed.resume()
    assert [record["trial"] for record in resumed.records] == list(range(stop + 1))
    drive(resumed)
    records = read_trials(folder / "trials.jsonl")
    assert [record["trial"] for record in records] == list(range(16))
    assert len({json.dumps(record["plan"]) for record in records}) == 16


def test_resuming_a_search_of_many_at_once_repeats_no_trial_number(open_ended, tmp_path, monkeypatch):
    folder = tmp_path / "search"
    killed = make(open_ended, folder)
    out = [killed.suggest(str(number)) for number in range(6)]
    killed.on_trial_complete("5", result(out[5]["plan"]))
    monkeypatch.setattr(killed, "save_state", lambda: None)
    killed.on_trial_complete("2", result(out[2]["plan"]))
    resumed = make(open_ended, folder)
    resumed.resume()
    entries = drive(resumed)
    assert [entry["trial"] for entry in entries] == [0, 1, 3, 4, *range(6, 16)]
    assert plans(entries[:4]) == [out[number]["plan"] for number in (0, 1, 3, 4)]


def test_plans_out_before_anything_was_saved_are_made_up_for(open_ended, tmp_path, monkeypatch):
    folder = tmp_path / "search"
    killed = make(open_ended, folder)
    out = [killed.suggest(str(number)) for number in range(6)]
    # As if the kill came between the two files of the very first trial that was finished.
    monkeypatch.setattr(killed, "save_state", lambda: None)
    killed.on_trial_complete("5", result(out[5]["plan"]))
    resumed = make(open_ended, folder)
    resumed.resume()
    assert not resumed.finished()
    assert sorted(entry["trial"] for entry in drive(resumed)) == [0, 1, 2, 3, 4, *range(6, 16)]
    assert resumed.finished()
    assert len({json.dumps(record["plan"]) for record in resumed.records}) == 16


def test_a_large_state_is_saved_now_and_then_and_nothing_is_lost_by_it(open_ended, tmp_path, monkeypatch):
    monkeypatch.setattr("pfray.search._persistence.QUICK", 0.0)
    # No time after the first would be late enough.
    monkeypatch.setattr("pfray.search._persistence.SAVE_SHARE", 1e-9)
    folder = tmp_path / "search"
    killed = make(open_ended, folder, trials=30)
    drive(killed, 1)
    first = (folder / "state.json").read_bytes()
    drive(killed, 24)
    assert (folder / "state.json").read_bytes() == first
    resumed = make(open_ended, folder, trials=30)
    resumed.resume()
    assert resumed.records == killed.records
    drive(resumed)
    assert [record["trial"] for record in resumed.records] == list(range(30))
    assert len({json.dumps(record["plan"]) for record in resumed.records}) == 30


def test_a_search_without_a_state_is_rebuilt_from_the_trial_file_alone(open_ended, tmp_path):
    drive(make(open_ended, tmp_path / "search"), 5)
    (tmp_path / "search" / "state.json").unlink()
    resumed = make(open_ended, tmp_path / "search")
    resumed.resume()
    assert [entry["trial"] for entry in drive(resumed)] == list(range(5, 16))


def test_resuming_a_finished_search_and_an_empty_folder(name, tmp_path):
    searcher = make(name, tmp_path / "search")
    searcher.resume()
    drive(searcher)
    again = make(name, tmp_path / "search")
    again.resume()
    assert again.finished()
    assert again.best() == searcher.best()


def test_a_line_that_was_half_written_is_dropped_and_the_next_one_fits(tmp_path):
    path = tmp_path / "search" / "trials.jsonl"
    searcher = make("random", path.parent)
    drive(searcher, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    assert [record["trial"] for record in read_trials(path)] == [0, 1]
    assert path.read_bytes() == whole
    drive(searcher, 1)
    assert [record["trial"] for record in read_trials(path)] == [0, 1, 2]


def test_a_first_line_that_was_half_written_leaves_no_trial(tmp_path):
    assert read_trials(tmp_path / "none.jsonl") == []
    (tmp_path / "trials.jsonl").write_text('{"trial": 0, "pl')
    assert read_trials(tmp_path / "trials.jsonl") == []
    assert (tmp_path / "trials.jsonl").read_bytes() == b""


def test_a_harder_targets_plans_are_a_fine_warm_start(open_ended):
    # All are uniform: on this target they are one plan.
    earlier = [(SPACE.uniform({"sparsity": sparsity}), sparsity) for sparsity in (0.8, 0.85, 0.9, 0.95)]
    searcher = make(open_ended, first_plans=())
    searcher.warm_start(earlier)
    assert len(drive(searcher)) == 16


def test_a_warm_start_is_told_and_its_best_plan_tried_after_the_first_ones(open_ended):
    good = SPACE.fit_to_target(SPACE.decode(BEST), LIMITS)
    bad, worse = (SPACE.fit_to_target(SPACE.decode(CENTER + step), LIMITS) for step in np.eye(6)[:2] * 0.3)
    searcher = make(open_ended)
    first = len(searcher.queue)
    searcher.warm_start([(bad, 0.2), (good, 0.9), (worse, None)])
    assert searcher.history == [(bad, 0.2), (good, 0.9), (worse, None)]
    entries = drive(searcher)
    assert len(entries) == 16
    assert (entries[first]["origin"], entries[first]["plan"]) == ("warm start", pytest.approx(good))
    own = {open_ended, f"{open_ended}, random start"}
    assert {entry["origin"] for entry in entries[first + 1 :]} <= own
    assert [record["trial"] for record in searcher.records] == list(range(16))
    assert len(searcher.history) == 19


def test_a_warm_started_search_goes_on_after_a_kill_as_if_it_had_not_stopped(open_ended, tmp_path):
    def warm(folder: Path) -> PlanSearcher:
        searcher = make(open_ended, folder)
        searcher.warm_start([(SPACE.decode(CENTER + step), score(SPACE.decode(CENTER + step))) for step in moves])
        return searcher

    moves = 0.1 * np.random.default_rng(0).standard_normal((12, 6))
    whole = plans(drive(warm(tmp_path / "whole")))
    before = plans(drive(warm(tmp_path / "killed"), 8))
    resumed = warm(tmp_path / "killed")
    assert resumed.resume() is None
    assert before + plans(drive(resumed)) == whole
