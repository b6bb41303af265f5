from __future__ import annotations

import io
import re
from itertools import pairwise

import pytest
from rich.console import Console

from pfray.reporting import progress as module
from pfray.reporting.observers import Observers, SearchState
from pfray.reporting.progress import Progress


@pytest.fixture
def plain() -> tuple[Observers, io.StringIO]:
    text = io.StringIO()
    return Observers([Progress(Console(file=text, force_terminal=False, width=40))]), text


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_off_a_terminal_a_stage_is_plain_lines_with_name_done_total_and_note(plain, clock):
    observers, text = plain
    with observers.stage("search", total=4) as stage:
        clock[0] += 6
        stage.update(1, "best 0.9")
        clock[0] += 1
        stage.update(2, "too soon for a line")
        clock[0] += 5
        stage.update(3, "best 0.95 of [red]trials[/red], a note longer than the console is wide")
        stage.update(4, "best 0.95")
    assert text.getvalue().splitlines() == [
        "[search] started",
        "[search] 1/4 best 0.9, about 18 s left",
        "[search] 3/4 best 0.95 of [red]trials[/red], a note longer than the console is wide, about 4 s left",
        "[search] 4/4 best 0.95",
        "[search] done in 12.0 s",
    ]


def test_what_was_done_in_an_earlier_session_does_not_enter_the_rate(plain, clock):
    observers, text = plain
    with observers.stage("search", total=100) as stage:
        clock[0] += 10
        stage.update(91, "")
    assert "91/100 , about 90 s left" in text.getvalue()
    with observers.stage("train", total=4) as stage:
        clock[0] += 0.5
        stage.update(1, "an epoch of the earlier session")
        stage.update(2, "another")
        clock[0] += 9.5
        stage.update(2.25, "epoch 3, 25 %")
    assert "2/4 epoch 3, 25 %, about 66 s left" in text.getvalue()


def test_the_share_of_an_epoch_counts_for_the_rate_and_lines_get_rarer_with_the_hours(plain, clock):
    observers, text = plain
    with observers.stage("train", total=3) as stage:
        clock[0] += 100
        stage.update(1.25, "epoch 2, 25 %")  # the first was trained in an earlier session
        for second in range(4000):
            clock[0] += 1
            stage.update(1.5, f"after {second}")
    first, *others = text.getvalue().splitlines()[1:-1]
    assert first == "[train] 1/3 epoch 2, 25 %, about 700 s left"
    seconds = [int(line.split()[3].rstrip(",")) for line in others]
    assert [after - before for before, after in pairwise(seconds)][:2] == [6, 6]
    assert [after - before for before, after in pairwise(seconds)][-2:] == [60, 60]


def test_a_stage_without_a_total_counts_only(plain, clock):
    observers, text = plain
    with observers.stage("load") as stage:
        clock[0] += 6
        stage.update(3, "files")
    assert "[load] 3 files\n" in text.getvalue()


def test_seconds_are_kept_and_added_even_of_a_stage_that_fails(plain, clock):
    observers, text = plain
    with observers.stage("train"):
        clock[0] += 2

    def fail() -> None:
        with observers.stage("train"):
            clock[0] += 3
            raise ValueError("broke")

    with pytest.raises(ValueError, match="broke"):
        fail()
    assert observers.seconds == {"train": 5.0}
    assert text.getvalue().count("done in") == 1


def test_on_a_terminal_the_bar_shows_name_counts_and_note():
    text = io.StringIO()
    with Observers([Progress(Console(file=text, force_terminal=True, width=120))]).stage("search", total=4) as stage:
        stage.update(4, "best 0.9")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    assert "search" in shown
    assert "4/4" in shown
    assert "best 0.9" in shown
    assert "[search]" not in shown


def test_a_note_prints_the_text_as_it_is(plain):
    observers, text = plain
    observers.note("[bold] 12345 and a text that is longer than 40 characters")
    assert text.getvalue() == "[bold] 12345 and a text that is longer than 40 characters\n"


def test_a_finished_trial_moves_its_stage_on_and_names_the_best(plain, clock):
    observers, text = plain
    records = [{"score": 0.5, "error": None, "origin": "uniform"}, {"score": None, "error": "broke"}]
    with observers.stage("search", total=2):
        observers.trial_finished(SearchState("search", records, records[0], "agreement 0.5000"))
    assert "[search] 2/2 best agreement 0.5000 (uniform), 1 failed\n" in text.getvalue()


def test_without_stages_the_notes_are_all_that_is_shown():
    text = io.StringIO()
    observers = Observers([Progress(Console(file=text, force_terminal=False), stages=False)])
    with observers.stage("search", total=2) as stage:
        stage.update(2, "best 0.9")
        observers.note("note: none of it")
    assert text.getvalue() == "note: none of it\n"
