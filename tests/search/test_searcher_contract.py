"""What every searcher promises, whatever its algorithm: each module of pfray/search is held to all of it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.tune.search import Searcher

import pfray.search
from pfray.components import find_class
from pfray.goal import first_plans, plans_without_search
from pfray.search.base import PlanSearcher, read_trials
from pfray.space import CompressionSpace, Knob, Plan

NAMES = sorted(m.name for m in pkgutil.iter_modules(pfray.search.__path__) if m.name != "base")
OPEN_ENDED = [name for name in NAMES if find_class("search", name, PlanSearcher).open_ended]
SIZES = np.array([500, 1_000, 2_000, 4_000, 8_000, 16_000])
LIMITS = {"sparsity": 0.75}


def costs(values: np.ndarray) -> dict[str, float]:
    pruned = float(np.rint(values * SIZES).sum())
    return {"sparsity": pruned / SIZES.sum(), "params": SIZES.sum() - pruned}


SPACE = CompressionSpace(
    tuple(
        Knob(f"layer{i}", compressed=0.98, full=0.0, scale="log_density", facts={"params": float(size)})
        for i, size in enumerate(SIZES)
    ),
    costs,
)
CURVES = {name: np.linspace(0.9, 0.0, 33) for name in SPACE.names}
# Uniform first, because the toy landscape's best plan is laid out from there.
PLANS = {**plans_without_search(SPACE, LIMITS), "allocate": plans_without_search(SPACE, LIMITS, CURVES)["allocate"]}
CENTER = SPACE.encode(SPACE.uniform(LIMITS))
# The best plan of the toy landscape: on the target, and well away from the uniform one.
BEST = SPACE.encode(SPACE.fit_to_target(SPACE.decode(CENTER + np.array([0.25, -0.1, 0.2, -0.15, 0.1, -0.05])), LIMITS))


def score(plan: Plan) -> float:
    return 1.0 - float(((SPACE.encode(plan) - BEST) ** 2).sum())


def make(name: str, folder: Path | None = None, **arguments: Any) -> PlanSearcher:
    found = find_class("search", name, PlanSearcher)
    arguments = {"seed": 0, "trials": 16, "first_plans": first_plans(PLANS, found), **arguments}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return found(SPACE, LIMITS, found.settings_type(), folder=folder, **arguments)


def result(plan: Plan) -> dict[str, Any]:
    return {"score": score(plan), "measurement/accuracy": score(plan), "seconds": 0.5, "training_iteration": 1}


def drive(
    searcher: PlanSearcher, count: int | None = None, outcome: Callable[[dict], dict | None] | None = None
) -> list[dict[str, Any]]:
    """Run up to ``count`` trials one after the other; ``outcome`` gives their results, None for a dead worker."""
    entries = []
    for number in itertools.count() if count is None else range(count):
        trial_id = f"{id(searcher)}-{number}"
        entry = searcher.suggest(trial_id)
        if entry == Searcher.FINISHED:
            break
        entries.append(entry)
        told = result(entry["plan"]) if outcome is None else outcome(entry)
        searcher.on_trial_complete(trial_id, told, error=told is None)
    return entries


def plans(entries: list[dict[str, Any]]) -> list[Plan]:
    return [entry["plan"] for entry in entries]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=OPEN_ENDED)
def open_ended(request: pytest.FixtureRequest) -> str:
    return request.param


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
    own = {"uniform": ["uniform"], "allocate": ["allocate"], "heuristic": ["heuristic"]}
    expected = own.get(name, ["uniform", "heuristic", "allocate"])
    assert [entry["origin"] for entry in entries[: len(expected)]] == expected
    assert [entry["plan"] for entry in entries[: len(expected)]] == [PLANS[origin] for origin in expected]
    assert all(entry["origin"] in ("random", "searched") for entry in entries[len(expected) :])


def test_fewer_trials_than_first_plans_run_the_first_of_them(name):
    searcher = make(name, trials=1)
    assert [entry["origin"] for entry in drive(searcher)] == [name if name in PLANS else "uniform"]
    assert searcher.finished()


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
    assert searcher.suggest("b") == Searcher.FINISHED
    assert not searcher.finished()
    searcher.on_trial_complete("a", {"score": 0.5})
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
    assert len(entries) == 20
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
    assert searcher.best()["score"] == max(score(plan) for i, plan in enumerate(plans(entries)) if i not in failed)
    assert (searcher.count()["finished"], searcher.count()["failed"]) == (14, 6)


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


@pytest.mark.parametrize("stop", [1, 7, 13])
def test_a_saved_search_goes_on_as_if_it_had_not_stopped(open_ended, tmp_path, stop):
    whole = plans(drive(make(open_ended)))
    stopped = make(open_ended)
    before = plans(drive(stopped, stop))
    stopped.save(str(tmp_path / "state"))
    restored = make(open_ended, seed=99)
    restored.restore(str(tmp_path / "state"))
    assert before + plans(drive(restored)) == whole
    assert [record["score"] for record in restored.records] == [score(plan) for plan in whole]


def test_plans_that_were_out_when_a_run_was_killed_are_suggested_again_first(name, tmp_path):
    killed = make(name, tmp_path / "search", trials=8)
    first = killed.suggest("a")
    out = killed.suggest("b")
    killed.on_trial_complete("a", result(first["plan"]))
    resumed = make(name, tmp_path / "search", trials=8)
    resumed.resume()
    assert resumed.suggest("c") == out
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
def test_resuming_takes_over_a_trial_that_was_written_but_not_yet_in_the_state(open_ended, tmp_path, stop):
    folder = tmp_path / "search"
    killed = make(open_ended, folder)
    drive(killed, stop)
    state = (folder / "searcher.pkl").read_bytes()
    drive(killed, 1)
    # As if the kill came between the two files.
    (folder / "searcher.pkl").write_bytes(state)
    resumed = make(open_ended, folder)
    resumed.resume()
    assert [record["trial"] for record in resumed.records] == list(range(stop + 1))
    drive(resumed)
    records = read_trials(folder / "trials.jsonl")
    assert [record["trial"] for record in records] == list(range(16))
    assert len({json.dumps(record["plan"]) for record in records}) == 16


def test_resuming_a_search_of_many_at_once_repeats_no_trial_number(open_ended, tmp_path):
    folder = tmp_path / "search"
    killed = make(open_ended, folder)
    out = [killed.suggest(str(number)) for number in range(6)]
    killed.on_trial_complete("5", result(out[5]["plan"]))
    state = (folder / "searcher.pkl").read_bytes()
    killed.on_trial_complete("2", result(out[2]["plan"]))
    (folder / "searcher.pkl").write_bytes(state)
    resumed = make(open_ended, folder)
    resumed.resume()
    entries = drive(resumed)
    assert [entry["trial"] for entry in entries] == [0, 1, 3, 4, *range(6, 16)]
    assert plans(entries[:4]) == [out[number]["plan"] for number in (0, 1, 3, 4)]


def test_a_search_without_a_state_is_rebuilt_from_the_trial_file_alone(open_ended, tmp_path):
    drive(make(open_ended, tmp_path / "search"), 5)
    (tmp_path / "search" / "searcher.pkl").unlink()
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


def test_random_plans_scatter_around_the_uniform_one_by_the_spread():
    entries = drive(make("random", trials=150))[3:]
    moves = np.array([SPACE.encode(plan) - CENTER for plan in plans(entries)])
    # What is left of a normal of 0.4 / sqrt(6) once the common move onto the target, which the large layer decides, is
    # taken out differs from knob to knob; their mean does not lie far from it.
    assert np.abs(moves.mean(0)).max() < 0.06
    assert 0.08 < moves.std() < 0.25


def space_of(count: int, **knob: Any) -> CompressionSpace:
    """``count`` knobs whose cost is the mean value, weighted by sizes that differ 16-fold: sparsity, or bits."""
    weights = np.geomspace(1.0, 16.0, count) / np.geomspace(1.0, 16.0, count).sum()
    unit = "bits" if knob.get("integer") else "sparsity"
    knob = knob or {"compressed": 0.98, "full": 0.0, "scale": "log_density"}
    knobs = [Knob(f"layer{i}", facts={"params": 1e4 * w, "macs": 1e6 * w}, **knob) for i, w in enumerate(weights)]
    return CompressionSpace(tuple(knobs), lambda values: {unit: float(values @ weights)})


def search(
    name: str, space: CompressionSpace, limits: dict[str, float], trials: int, use_up: bool = True
) -> PlanSearcher:
    found = find_class("search", name, PlanSearcher)
    first = (("uniform", space.uniform(limits)),)
    return found(space, limits, found.settings_type(), seed=0, trials=trials, first_plans=first, use_up=use_up)


def test_five_hundred_knobs_are_searched(open_ended):
    space = space_of(500)
    entries = drive(search(open_ended, space, LIMITS, 21), outcome=lambda e: {"score": -sum(e["plan"].values())})
    assert len(entries) == 21
    assert entries[-1]["origin"] == ("random" if open_ended == "random" else "searched")
    for plan in plans(entries):
        assert list(plan) == space.names
        assert all(0.0 <= value <= 0.98 for value in plan.values())
        assert space.costs(plan)["sparsity"] == pytest.approx(0.75, abs=1e-6)


def test_one_knob_that_the_target_decides_has_one_plan_and_the_search_ends(open_ended):
    space = space_of(1)
    searcher = search(open_ended, space, LIMITS, 25)
    entries = drive(searcher, outcome=lambda entry: {"score": 0.5})
    assert plans(entries) == [{"layer0": pytest.approx(0.75)}]
    assert searcher.finished()


@pytest.mark.parametrize("count", [1, 3])
def test_where_the_score_weighs_the_cost_plans_below_the_target_are_found(open_ended, count):
    space = space_of(count)
    searcher = search(open_ended, space, LIMITS, 25, use_up=False)
    # Best is a sparsity of 0.9 everywhere, more than the target asks for.
    entries = drive(searcher, outcome=lambda e: {"score": -sum((v - 0.9) ** 2 for v in e["plan"].values())})
    sparsities = [space.costs(plan)["sparsity"] for plan in plans(entries)]
    assert len(entries) == 25
    assert min(sparsities) >= 0.75 - 1e-9
    assert max(sparsities) > 0.76
    if open_ended == "gp":
        assert searcher.best()["score"] > -0.01


def test_searched_settings_are_looked_for_in_their_whole_range(open_ended):
    rate = Knob("finetune.lr", compressed=1e-4, full=1e-1, scale="log", free=True, default=2e-2)
    space = space_of(20).with_free((rate,))
    entries = drive(search(open_ended, space, LIMITS, 24), outcome=lambda e: {"score": -e["plan"]["layer3"]})
    rates = [plan["finetune.lr"] for plan in plans(entries)]
    assert all(1e-4 <= value <= 1e-1 for value in rates)
    assert min(rates) < 3e-3
    assert max(rates) > 3e-2


def test_a_harder_targets_plans_are_a_fine_warm_start(open_ended):
    # All are uniform: on this target they are one plan.
    earlier = [(SPACE.uniform({"sparsity": sparsity}), sparsity) for sparsity in (0.8, 0.85, 0.9, 0.95)]
    searcher = make(open_ended, first_plans=())
    searcher.warm_start(earlier)
    assert len(drive(searcher)) == 16


def test_bits_are_whole_numbers_within_their_range_and_on_the_target(open_ended):
    space, limits = space_of(12, compressed=2, full=8, integer=True), {"bits": 4.5}
    entries = drive(search(open_ended, space, limits, 25), outcome=lambda e: {"score": -e["plan"]["layer3"]})
    assert len({tuple(plan.values()) for plan in plans(entries)}) == 25
    for plan in plans(entries):
        assert set(plan.values()) <= {2, 3, 4, 5, 6, 7, 8}
        assert space.costs(plan)["bits"] <= 4.5


def test_a_reward_that_never_changes_ends_no_search(open_ended):
    searcher = make(open_ended, trials=25)
    entries = drive(searcher, outcome=lambda entry: {"score": 0.25})
    assert len({tuple(plan.values()) for plan in plans(entries)}) == 25
    assert {record["score"] for record in searcher.records} == {0.25}


def test_after_any_kind_of_failure_the_search_goes_on(open_ended):
    failures = [{"score": float(v)} for v in ("inf", "-inf", "nan")] + [{"score": None}, None, {"error": "broke"}]
    searcher = make(open_ended, trials=30)
    entries = drive(searcher, outcome=lambda e: failures[e["trial"] % 7] if e["trial"] % 7 < 6 else result(e["plan"]))
    assert len(entries) == 30
    assert [record["score"] is not None for record in searcher.records] == [number % 7 == 6 for number in range(30)]
    assert [plan for plan, _ in searcher.told] == plans(entries)


def test_a_warm_start_is_told_and_its_best_plan_tried_after_the_first_ones(open_ended):
    good = SPACE.fit_to_target(SPACE.decode(BEST), LIMITS)
    bad, worse = (SPACE.fit_to_target(SPACE.decode(CENTER + step), LIMITS) for step in np.eye(6)[:2] * 0.3)
    searcher = make(open_ended)
    first = len(searcher.queue)
    searcher.warm_start([(bad, 0.2), (good, 0.9), (worse, None)])
    assert searcher.told == [(bad, 0.2), (good, 0.9), (worse, None)]
    entries = drive(searcher)
    assert len(entries) == 16
    assert (entries[first]["origin"], entries[first]["plan"]) == ("warm start", pytest.approx(good))
    assert all(entry["origin"] in ("random", "searched") for entry in entries[first + 1 :])
    assert [record["trial"] for record in searcher.records] == list(range(16))
    assert len(searcher.told) == 19


def test_a_warm_started_search_goes_on_after_a_kill_as_if_it_had_not_stopped(open_ended, tmp_path):
    def warm(folder: Path) -> PlanSearcher:
        searcher = make(open_ended, folder)
        searcher.warm_start([(SPACE.decode(CENTER + step), score(SPACE.decode(CENTER + step))) for step in moves])
        return searcher

    moves = 0.1 * np.random.default_rng(0).standard_normal((12, 6))
    whole = plans(drive(warm(tmp_path / "whole")))
    before = plans(drive(warm(tmp_path / "killed"), 8))
    resumed = make(open_ended, tmp_path / "killed")
    resumed.resume()
    assert before + plans(drive(resumed)) == whole


@functools.cache
def distance(name: str) -> float:
    """Squared distance of the best of 60 plans to the best there is, the mean over six seeds."""
    searchers = [make(name, seed=seed, trials=60) for seed in range(6)]
    for searcher in searchers:
        drive(searcher)
    return float(np.mean([1.0 - searcher.best()["score"] for searcher in searchers]))


# Measured, of random search's distance: tpe 0.51 over these six seeds and 0.50 over 18, gp 0.0014 over 12.
@pytest.mark.parametrize(("learned", "share"), [("tpe", 0.75), ("gp", 0.02)])
def test_what_learns_comes_nearer_to_the_best_plan_than_random_search(learned, share):
    assert distance(learned) < share * distance("random")
