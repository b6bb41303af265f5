"""A search whose state is gone, damaged, or of something else goes on from its trials, and says so in one line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from pfray.errors import StorageError
from pfray.search._trial_log import read_trials
from pfray.search.base import PlanSearcher
from pfray.space import Plan
from pfray.utils.settings import NoSettings
from tests.search.toy import LIMITS, PLANS, SPACE, drive, make, plans, result

STOP = 7


class Evil:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("ran"),)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def older(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 0}))


def of_another_space(path: Path) -> None:
    """Whole, and with the right checksum."""
    from pfray.search import _state

    of, values, tensors = _state.read(path.parent)
    values["queue"] = [{"trial": 9, "origin": "searched", "plan": {"conv": 0.5}}]
    _state.write(path.parent, of, values, tensors)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "halved": (halve, "it is damaged"),
    "emptied": (lambda path: path.write_bytes(b""), "it is damaged"),
    "flipped": (flip, "it is damaged"),
    "a list": (lambda path: path.write_text("[]"), "it is no state of a search"),
    "older": (older, "it is of another version of pfray"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Evil())), "it is damaged"),
    "gone": (Path.unlink, "it is missing"),
    "another space's": (of_another_space, "it is of another space"),
}


def stopped(name: str, folder: Path) -> list[dict]:
    searcher = make(name, folder)
    drive(searcher, STOP)
    return searcher.records


def goes_on(name: str, folder: Path, records: list[dict], reason: str) -> None:
    """All trials are kept, none is repeated, and the rest of the budget is used."""
    searcher = make(name, folder)
    note = searcher.resume()
    assert note == (f"{folder}/state.json is not used: {reason}. The search goes on from the {len(records)} trials of "
                    "trials.jsonl, with other plans than it would have tried")  # fmt: skip
    assert searcher.records == records
    drive(searcher)
    found = read_trials(folder / "trials.jsonl")
    assert [record["trial"] for record in found] == list(range(16))
    assert len({json.dumps(record["plan"]) for record in found}) == 16
    assert make(name, folder).resume() is None  # the damaged one was replaced


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["random", "policy_gradient"])
def test_whatever_was_done_to_the_state_the_search_goes_on_from_its_trials(tmp_path, monkeypatch, name, damage):
    monkeypatch.chdir(tmp_path)
    records = stopped(name, tmp_path / "search")
    DAMAGES[damage][0](tmp_path / "search" / "state.json")
    goes_on(name, tmp_path / "search", records, DAMAGES[damage][1])
    assert not (tmp_path / "ran").exists()


def test_every_searcher_goes_on_without_its_state(open_ended, tmp_path):
    records = stopped(open_ended, tmp_path / "search")
    (tmp_path / "search" / "state.json").unlink()
    goes_on(open_ended, tmp_path / "search", records, "it is missing")


@pytest.mark.parametrize("damage", [halve, flip, Path.unlink])
def test_networks_that_are_damaged_are_learned_again(tmp_path, damage):
    records = stopped("policy_gradient", tmp_path / "search")
    (path,) = (tmp_path / "search").glob("state-*.safetensors")
    damage(path)
    goes_on("policy_gradient", tmp_path / "search", records, f"{path.name} is missing or damaged")


def test_networks_of_another_width_are_learned_again(tmp_path):
    """As after a change of the settings' defaults."""
    records = stopped("policy_gradient", tmp_path / "search")
    (path,) = (tmp_path / "search").glob("state-*.safetensors")
    from pfray.utils.cache import load_tensors, save_tensors

    tensors = load_tensors(path)
    save_tensors(path, {**tensors, "policy.head.bias": tensors["policy.head.bias"][:-1]})
    goes_on("policy_gradient", tmp_path / "search", records, "it is damaged")


def test_the_pickle_of_an_earlier_version_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = stopped("random", tmp_path / "search")
    (tmp_path / "search" / "state.json").unlink()
    (tmp_path / "search" / "searcher.pkl").write_bytes(pickle.dumps(Evil()))
    goes_on("random", tmp_path / "search", records,
            "the run is of an earlier version, whose searcher.pkl is not read")  # fmt: skip
    assert not (tmp_path / "ran").exists()


def test_no_pickle_is_written(open_ended, tmp_path):
    drive(make(open_ended, tmp_path / "search"), STOP)
    names = {path.name for path in (tmp_path / "search").iterdir()}
    assert {"trials.jsonl", "state.json"} <= names
    rest = names - {"trials.jsonl", "state.json", "policy.safetensors"}
    assert all(name.startswith("state-") and name.endswith(".safetensors") for name in rest)
    assert len(rest) <= 1
    json.loads((tmp_path / "search" / "state.json").read_text())


def test_a_state_of_other_trials_is_not_used(tmp_path):
    records = stopped("random", tmp_path / "search")
    path = tmp_path / "search" / "trials.jsonl"
    records[2] = {**records[2], "score": 0.123}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    goes_on("random", tmp_path / "search", records, "it is of other trials")


def test_a_state_after_another_warm_start_is_not_used(tmp_path):
    def warm(score: float) -> PlanSearcher:
        searcher = make("random", tmp_path / "search")
        searcher.warm_start([(PLANS["heuristic"], score)])
        return searcher

    drive(warm(0.5), STOP)
    assert warm(0.5).resume() is None
    assert "is not used: it is of other trials" in warm(0.6).resume()


def test_the_state_of_another_searcher_is_not_used(tmp_path):
    records = stopped("random", tmp_path / "search")
    goes_on("tpe", tmp_path / "search", records, "it is of other trials")


def test_half_a_last_line_is_a_trial_that_is_run_again_and_no_more_are_counted_than_the_file_holds(tmp_path):
    stopped("random", tmp_path / "search")
    path = tmp_path / "search" / "trials.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    searcher = make("random", tmp_path / "search")
    assert f"it is of {STOP} trials, and there are {STOP - 1}" in searcher.resume()
    assert len(path.read_text().splitlines()) == len(searcher.records) == searcher.count()["finished"] == STOP - 1
    drive(searcher)
    assert [record["trial"] for record in read_trials(path)] == list(range(16))


def test_a_foreign_line_stops_the_search_before_it_begins(name, tmp_path):
    drive(make(name, tmp_path / "search"), 1)
    with (tmp_path / "search" / "trials.jsonl").open("a") as file:
        file.write("what a stranger wrote\n")
    with pytest.raises(StorageError, match=r"trials.jsonl, line 2: 'what a stranger wrote' is no record of a trial"):
        make(name, tmp_path / "search").resume()


@pytest.mark.parametrize("stop", [3, 9])
def test_a_search_of_several_at_once_goes_on_with_the_same_plans(open_ended, tmp_path, stop):
    """Three at once; killed just as the next plan was asked for."""
    whole = several_at_once(make(open_ended, tmp_path / "whole"), 16)
    killed = several_at_once(make(open_ended, tmp_path / "killed"), stop)
    resumed = make(open_ended, tmp_path / "killed")
    assert resumed.resume() is None
    again = several_at_once(resumed, 16)
    assert {**killed, **again} == whole
    assert all(again[number] == killed[number] for number in again.keys() & killed.keys())


def several_at_once(searcher: PlanSearcher, finished: int) -> dict[int, Plan]:
    """The plans by trial, of the first ``finished`` trials and those that are out then; the oldest one always ends."""
    found: dict[int, Plan] = {}
    out: list[dict] = []
    while True:
        while len(out) < 3 and isinstance(entry := searcher.suggest(f"trial-{len(found)}"), dict):
            entry["id"] = f"trial-{len(found)}"
            found[entry["trial"]] = entry["plan"]
            out.append(entry)
        if not out or len(searcher.records) == finished:
            return found
        done = out.pop(0)
        searcher.on_trial_complete(done["id"], result(done["plan"]))


class Learned(PlanSearcher):
    """A searcher of the user's own, with a mean that it learns and knows nothing of states."""

    settings_type = NoSettings

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.mean = 0.0

    def ask(self) -> Plan:
        return self.sample_around(self.center + self.mean, 0.2)

    def tell(self, plan: Plan, score: float | None) -> None:
        self.mean = 0.9 * self.mean + 0.1 * (score or 0.0)
        self.rng.random()  # as a plan drawn for what was learned would


def test_a_searcher_without_a_state_of_its_own_learns_again_and_goes_on_with_the_same_plans(tmp_path):
    def own(folder: str) -> Learned:
        (tmp_path / folder).mkdir(exist_ok=True)
        return Learned(SPACE, LIMITS, NoSettings(), trials=12, folder=tmp_path / folder)

    whole = plans(drive(own("whole")))
    before = plans(drive(own("killed"), 5))
    resumed = own("killed")
    assert resumed.resume() is None
    assert before + plans(drive(resumed)) == whole
