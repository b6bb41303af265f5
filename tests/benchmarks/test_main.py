from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as every
from benchmarks import against_torch_pruning, result, search_overhead
from benchmarks.studies import sparse_accuracy
from tests.benchmarks.runs import closing, write_run

ROOT = Path(__file__).resolve().parents[2]
SHARED = (
    "__init__", "checkpointed", "parser", "pruned_elsewhere", "raylets", "removal_search", "result", "searching",
    "sleeping", "sleeping_trial", "sparse_resnet", "synthetic", "torch_pruning_resnet", "torch_pruning_share",
    "torchvision_ops", "variants", "workers", "zoo_networks",
)  # fmt: skip
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").rglob("*.py") if path.stem not in SHARED)


def test_the_closing_line_compares_with_the_goal(capsys):
    cases = ((1.2, "<= 1.25", True), (1.3, "<= 1.25", False), (0.0, "> 0", False), (0.9, ">= 0.95", False))
    for value, goal, ok in cases:
        result.close("x", value, "unit", goal)
        assert closing(capsys.readouterr().out) == {"name": "x", "value": value, "unit": "unit", "goal": goal, "ok": ok}


@pytest.mark.parametrize(
    "benchmark", [sparse_accuracy, search_overhead, against_torch_pruning], ids=lambda module: module.NAME
)
def test_missing_data_is_one_line_and_no_failure(benchmark, tmp_path, capsys):
    nowhere = str(tmp_path / "nowhere")
    arguments = [nowhere] if benchmark is sparse_accuracy else ["--data", nowhere]
    assert benchmark.main(arguments) == result.SKIPPED
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert nowhere in output
    assert "Remedy" in output


def test_every_benchmark_but_a_study_is_run_by_all_of_them():
    known = {module for module, *_ in every.RUNS} | {*every.CHECKS, *every.LONG, "__main__"}
    assert known == {script.stem for script in SCRIPTS if script.parent.name != "studies"}


def test_all_closing_lines_are_printed_together_and_a_benchmark_that_breaks_is_an_error(tmp_path, monkeypatch, capsys):
    finished = str(write_run(tmp_path / "a", 0, 0.8, 0.7, best=2))
    study = "studies.sparse_accuracy"
    good, absent, broken = (study, finished), (study, "nowhere"), (study, "--wrong")
    assert every.main([], [good, absent]) == 0
    output = capsys.readouterr().out
    closings = [line for line in output.split("== results")[1].splitlines() if every.is_closing(line)]
    assert [json.loads(line)["ok"] for line in closings] == [False]
    assert f"skipped: {study} nowhere" in output
    assert every.main([], [good, broken]) == 1
    assert f"failed: {study} --wrong (exit code 2)" in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_works_from_anywhere_as_module_and_as_script(script, tmp_path):
    module = ".".join(script.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for command, folder in (([str(script)], tmp_path), (["-m", module], ROOT)):
        command = [sys.executable, *command, "--help"]
        done = subprocess.run(command, cwd=folder, env=plain, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"usage: python -m {module}" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_asking_for_help_loads_nothing_heavy(script):
    code = f"import runpy, sys; runpy.run_path({str(script)!r}); sys.exit(bool({{'torch', 'ray'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
