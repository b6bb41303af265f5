from __future__ import annotations

import subprocess

import pytest

from benchmarks.studies import sparse_accuracy
from tests.benchmarks.runs import closing, write_run


def test_the_table_gives_mean_and_spread_over_seeds(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", 0, 0.80, 0.82, best=2), write_run(tmp_path / "b", 1, 0.81, 0.82, best=1)]
    assert sparse_accuracy.main([str(run) for run in runs]) == 0
    output = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line[0] == "|"]
    assert rows[2] == ["0", "90.00", "80.00", "82.00", "+2.00", "3", "tpe"]
    assert rows[3] == ["1", "90.00", "81.00", "82.00", "+1.00", "3", "heuristic"]
    assert rows[4][:5] == ["mean", "90.00", "80.50", "82.00", "+1.50"]
    assert rows[5][:5] == ["min .. max", "90.00 .. 90.00", "80.00 .. 81.00", "82.00 .. 82.00", "+1.00 .. +2.00"]
    assert {len(row) for row in rows} == {7}
    line = closing(output)
    assert line["value"] == pytest.approx(1.5)
    assert line["ok"] is True


def test_a_searched_plan_that_is_no_better_misses_the_goal(tmp_path, capsys):
    assert sparse_accuracy.main([str(write_run(tmp_path / "a", 0, 0.8, 0.8, best=0))]) == 0
    assert closing(capsys.readouterr().out)["ok"] is False


def test_run_leaves_finished_runs_alone_and_resumes_the_others(tmp_path, monkeypatch):
    write_run(tmp_path / "resnet20_sparse_seed0", 0, 0.80, 0.82, best=2)
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **settings: commands.append(command))
    folders = sparse_accuracy.run_seeds(sparse_accuracy.EXPERIMENT, [0, 5], tmp_path, ["search.trials=3"])
    assert [folder.name for folder in folders] == ["resnet20_sparse_seed0", "resnet20_sparse_seed5"]
    assert len(commands) == 1
    assert {"seed=5", "name=resnet20_sparse_seed5", "search.trials=3", "--resume"} <= set(commands[0])
