"""The summary as it is written and read; damaged files are in test_report_input.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfray.errors import StorageError
from pfray.reporting import report
from pfray.reporting.remarks import remarks
from pfray.reporting.summary import Summary, absolute_limits
from pfray.units import Amount
from tests.reporting.test_report import write_run
from tests.summaries import SUMMARY, TRIALS, summary


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary().to_dict()))
    assert Summary.read(path) == summary()
    assert SUMMARY.items() <= summary().to_dict().items()


def test_baselines_that_were_not_trained_are_left_out_and_a_file_that_was_not_made_is_null() -> None:
    plain = summary(uniform=None, exported=None).to_dict()
    assert "uniform" not in plain
    assert plain["exported"] is None
    assert plain["allocate"] == SUMMARY["allocate"]


def test_a_file_of_an_earlier_version_has_the_limits_of_its_target(tmp_path: Path) -> None:
    earlier = {key: value for key, value in SUMMARY.items() if key != "limits"}
    assert Summary.parse(earlier).limits == {"sparsity": 0.75}
    slow = {**earlier, "target": {"latency_ms": "0.5x", "size_bytes": "0.1x", "macs": "0.4x", "max_drop": 0.01}}
    limits = Summary.parse(slow).limits
    assert limits == {"latency_ms": pytest.approx(3.05), "size_bytes": pytest.approx(1_280_000)}
    assert Summary.parse({**earlier, "target": {"bits": "many", "macs": None}}).limits == {}
    assert any("(target.latency_ms)" in note for note in remarks(Summary.parse(slow)))
    assert report.write(write_run(tmp_path / "run", earlier, TRIALS)).exists()


def test_milliseconds_are_relative_to_the_teachers_file_as_timed_beside_the_results() -> None:
    limits, exported = {"macs": 5e6, "latency_ms": 1.5}, {"latency_ms": 1.9, "teacher_latency_ms": 4.0}
    half = {"macs": Amount(5e6), "latency_ms": Amount(0.5, relative=True)}
    assert absolute_limits(half, limits, exported) == {"macs": 5e6, "latency_ms": 2.0}
    assert absolute_limits({"latency_ms": Amount(1.5)}, limits, exported) == limits
    assert absolute_limits({"macs": Amount(5e6)}, {"macs": 5e6}, exported) == {"macs": 5e6}
    assert absolute_limits(half, limits, None) == limits


@pytest.mark.parametrize("missing", ["exported", "compressed"])
def test_latencies_are_those_of_the_files_or_else_of_the_measurements(missing: str) -> None:
    measured = {"compressed": {"latency_ms": 8.0}, "teacher": {"latency_ms": 9.0}}
    found = summary(**{**measured, missing: None})
    assert found.latencies() == ((8.0, 9.0) if missing == "exported" else (5.9, 6.1))


def test_numbers_that_are_not_known_are_read_as_none(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"teacher": {"accuracy": NaN}, "seed": "x", "learner": 5}')
    found = Summary.read(tmp_path / "summary.json")
    assert (found.teacher, found.seed, found.learner, found.experiment) == ({"accuracy": None}, None, "5", "run")


def test_a_list_is_no_summary(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("[1]")
    with pytest.raises(StorageError, match=r"summary.json: not a run's summary. Remedy: name the folder"):
        Summary.read(tmp_path / "summary.json")
