from __future__ import annotations

import json
import logging

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pfray.config.schema import load
from pfray.errors import StorageError
from pfray.measure.evaluation import Measurement
from pfray.reporting.observers import Observer, Observers, SearchState
from pfray.reporting.tensorboard import TensorBoard
from pfray.run import run
from pfray.storage.run_folder import RunFolder
from tests.test_damages import RAW
from tests.without_ray import without_ray


class Listing(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def stage_started(self, stage: str, total: int | None) -> None:
        self.told.append(("started", stage, total))

    def stage_ended(self, stage: str, seconds: float, failed: bool) -> None:
        self.told.append(("ended", stage, failed))

    def epoch_done(self, training: str, epoch: int, loss: float) -> None:
        self.told.append((training, epoch, loss))

    def measured(self, model: str, measurement: Measurement) -> None:
        self.told.append(("measured", model, measurement.accuracy))

    def note(self, text: str) -> None:
        self.told.append((text,))


def record(number: int, score: float | None) -> dict:
    return {"trial": number, "score": score, "error": None if score is not None else "broke", "origin": "random"}


def test_all_observers_are_told_in_order_and_methods_that_they_lack_do_nothing():
    one, other = Listing(), Listing()
    observers = Observers([one, Observer(), other])
    with observers.stage("search", total=3) as stage:
        stage.update(1, "half")
    observers.epoch_done("compressed", 1, 0.5)
    observers.note("a line")
    observers.close()
    assert one.told == other.told == [
        ("started", "search", 3), ("ended", "search", False), ("compressed", 1, 0.5), ("a line",),
    ]  # fmt: skip


def test_a_stage_that_fails_ends_and_its_seconds_are_kept():
    one = Listing()
    observers = Observers([one])
    with pytest.raises(ValueError, match="broke"), observers.stage("train"):
        raise ValueError("broke")
    assert one.told[-1] == ("ended", "train", True)
    assert observers.seconds["train"] >= 0


def test_one_that_joins_for_a_while_is_told_no_longer():
    one = Listing()
    observers = Observers()
    with observers.joined_by(one):
        observers.note("heard")
    observers.note("not heard")
    assert one.told == [("heard",)]


def test_an_observer_that_fails_is_left_out_and_the_run_goes_on(caplog):
    class Broken(Observer):
        def note(self, text: str) -> None:
            raise KeyError(text)

    one = Listing()
    observers = Observers([Broken(), one])
    with caplog.at_level(logging.WARNING):
        observers.note("first")
        observers.note("second")
    assert one.told == [("first",), ("second",)]
    assert caplog.text.count("the observer Broken failed (KeyError: 'first')") == 1


def test_an_observer_whose_network_is_down_or_that_fails_in_two_threads_costs_nothing(caplog):
    class Offline(Observer):
        def note(self, text: str) -> None:
            if text == "again":
                observers.note("from another thread")  # where it fails and is left out first
            raise ConnectionResetError("gone")

    one = Listing()
    observers = Observers([Offline(), one])
    observers.note("again")
    assert one.told == [("from another thread",), ("again",)]
    assert caplog.text.count("the observer Offline failed (ConnectionResetError: gone)") == 2


@pytest.mark.parametrize("error", [StorageError("full. Remedy: free space"), OSError(28, "No space left on device")])
def test_a_full_disk_ends_the_run(error):
    class Full(Observer):
        def note(self, text: str) -> None:
            raise error

    with pytest.raises(type(error)):
        Observers([Full()]).note("x")


def test_the_state_of_a_search_counts_its_failed_trials():
    records = [record(0, 0.5), record(1, None), record(2, 0.25)]
    assert SearchState("search", records, records[0]).failed == 1


def test_tensorboard_has_scores_and_losses_and_nothing_of_the_rescoring(tmp_path):
    board = TensorBoard(tmp_path)
    records = [record(0, 0.5), record(1, 0.25)]
    for stage in ("search", "rescore"):
        board.trial_finished(SearchState(stage, records[:1], records[0]))
        board.trial_finished(SearchState(stage, records, records[0]))
    board.epoch_done("compressed", 1, 2.0)
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("search/score")] == [(0, 0.5), (1, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("search/best")] == [(0, 0.5), (1, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("train/compressed/loss")] == [(1, 2.0)]


def test_a_users_own_observer_is_told_of_a_whole_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "exp.yaml"
    path.write_text(yaml.safe_dump({**RAW, "storage": str(tmp_path / "runs")}))
    mine = Listing()
    with without_ray():
        folder = RunFolder(run(load(path), observers=[mine]))
    stages = [name for what, name, *_ in (told for told in mine.told if len(told) == 3) if what == "ended"]
    assert stages[0] == "load"
    assert stages[-1] == "measure"
    assert set(folder.read_seconds()) == set(stages)
    accuracies = {name: value for what, name, value in (t for t in mine.told if len(t) == 3) if what == "measured"}
    summary = json.loads(folder.summary.read_text())
    assert set(accuracies) == {"teacher", "uniform", "compressed"}
    assert accuracies == {name: summary[name]["accuracy"] for name in accuracies}
    epochs = [told[1] for told in mine.told if told[0] == "compressed"]
    assert epochs == [1, 2]
    assert mine.told[-1] == (f"report: {folder.report}",)
