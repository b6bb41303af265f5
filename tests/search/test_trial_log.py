"""``trials.jsonl`` is the truth about a search: whatever is wrong with it is named, and nothing is built on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfray.errors import StorageError
from pfray.search._trial_log import checksum, parse, read_trials
from tests.search.toy import GIVEN, SPACE, drive, make

TRIALS = 6


@pytest.fixture
def path(tmp_path) -> Path:
    """Of a search whose six trials are finished."""
    drive(make("random", tmp_path / "search", trials=TRIALS))
    return tmp_path / "search" / "trials.jsonl"


def change(path: Path, number: int, **keys: object) -> None:
    """Replace keys of a line, from 1; ... takes a key away."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    record = {**lines[number - 1], **keys}
    lines[number - 1] = {key: value for key, value in record.items() if value is not ...}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def refused(path: Path, reason: str) -> None:
    before = path.read_bytes()
    with pytest.raises(StorageError, match=rf"trials.jsonl, line 3: {reason}.*\. Remedy: mend the line") as error:
        read_trials(path, SPACE, TRIALS)
    assert "\n" not in str(error.value)
    assert len(str(error.value).removeprefix(str(path))) < 400
    assert path.read_bytes() == before


@pytest.mark.parametrize(("keys", "reason"), [
    ({"score": "high"}, r"no record of a trial \(score: input should be a valid number\)"),
    ({"score": True}, r"no record of a trial \(score"),
    ({"score": float("nan")}, r"no record of a trial \(score: input should be a finite number\)"),
    ({"score": 10**400}, r"no record of a trial \(score"),
    ({"score": None}, "trial 2 has a score and an error, or neither"),
    ({"error": "broke"}, "trial 2 has a score and an error, or neither"),
    ({"trial": 1}, "trial 1 is there already"),
    ({"trial": TRIALS}, "trial 6 is not one of this search's, 0 to 5"),
    ({"trial": -1}, "trial -1 is not one of this search's"),
    ({"trial": 10**12}, "trial 1000000000000 is not one"),
    ({"trial": "2"}, r"no record of a trial \(trial"),
    ({"origin": ...}, r"no record of a trial \(origin: field required\)"),
    ({"more": 1}, r"no record of a trial \(more: extra inputs are not permitted\)"),
    ({"cost": {"sparsity": float("inf")}}, r"no record of a trial \(cost.sparsity"),
    ({"measurement": {"accuracy": [1]}}, r"no record of a trial \(measurement.accuracy"),
    ({"plan": {**GIVEN, "layer9": 0.5}}, "the plan is not one of this search: unknown knob 'layer9'. Did you mean"),
    ({"plan": {}}, "the plan is not one of this search: values are missing for 'layer0'"),
    ({"plan": {**GIVEN, "layer0": 1.5}}, "the plan is not one of this search: layer0: 1.5 is not allowed"),
])  # fmt: skip
def test_a_line_that_is_no_trial_of_this_search_is_named(path, keys, reason):
    change(path, 3, **keys)
    refused(path, reason)


@pytest.mark.parametrize(("line", "shown"), [
    (b"what a stranger wrote \x1b[31m" + b"x" * 5000, r"'what a stranger wrote \\x1b"),
    (b"[1, 2]", r"\[1, 2\]"),
    (b"\x00" * 80, r"'\\x00"),
    (b"", "''"),
    (b"[" * 100_000, r"'\[\["),
    (b"\xff\xfe", "'"),
])  # fmt: skip
def test_a_foreign_line_is_shown_cut_and_escaped(path, line, shown):
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]))
    refused(path, f"{shown}.* is no record of a trial")


def test_a_folder_in_its_place_is_said(path):
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=r"trials.jsonl cannot be read \(Is a directory\)\. Remedy"):
        read_trials(path)


def test_a_last_line_without_its_end_only_is_kept(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert len(read_trials(path)) == TRIALS
    assert path.read_bytes() == whole


def test_the_checksum_is_that_of_the_lines_however_they_are_spaced(path):
    records = read_trials(path)
    spaced = b"".join(json.dumps(record, separators=(" ,", ":  ")).encode() + b"\n" for record in records)
    assert checksum(parse(spaced)[0]) == checksum(records)
    assert checksum([*records[:-1], {**records[-1], "score": 0.0}]) != checksum(records)
