"""The command ``pfray`` and its commands, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.reporting.test_report import write_run
from tests.summaries import SUMMARY, TRIALS

ROOT = Path(__file__).resolve().parents[1]
DEMO = "experiments/mobilenet_sparse.yaml"
# Says at the end which of the large libraries were imported.
WATCHED = """
import atexit, runpy, sys
heavy = ("torch", "ray")
atexit.register(lambda: print("imported:", *[name for name in heavy if name in sys.modules], file=sys.stderr))
runpy.run_module("pfray", run_name="__main__", alter_sys=True)
"""


def pfray(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WATCHED, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("arguments", [
    ["--help"], ["run", "--help"], ["inspect", "--help"], ["submit", "--help"], ["bench", "--help"], ["report", "-h"],
])  # fmt: skip
def test_every_help_has_examples_and_imports_neither_torch_nor_ray(arguments):
    done = pfray(*arguments)
    assert done.returncode == 0, done.stderr
    assert "examples:\n  python -m pfray " in done.stdout
    assert done.stderr == "imported:\n"


def test_the_help_of_run_lists_the_components():
    text = pfray("run", "--help").stdout
    for title in ("learners:", "searchers:", "models:", "data sets:"):
        assert f"\n{title}\n" in text
    assert "  weight_sparse      Gradual magnitude pruning of weights" in text


def test_the_installed_script_finds_a_users_modules_in_the_working_folder(tmp_path):
    (tmp_path / "mine.py").write_text("def net(num_outputs):\n    raise ValueError('found')\n")
    experiment = {"model": "mine:net", "data": "digits", "learner": "weight_sparse", "target": {"sparsity": 0.5}}
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(experiment))
    # As an installed script is started: its own folder, and not the working folder, is where Python looks.
    script = tmp_path / "bin" / "pfray"
    script.parent.mkdir()
    script.write_text("import sys\nfrom pfray.__main__ import main\nsys.exit(main())\n")
    command = [sys.executable, str(script), "run", "exp.yaml", "--check"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"error: model: found ({tmp_path / 'mine.py'}, line 2)" in done.stderr


def test_all_mistakes_of_an_experiment_file_are_told_at_once(tmp_path):
    path = tmp_path / "wrong.yaml"
    learner, target = {"name": "weight_sparse", "begn": 0.1}, {"sparsity": 5}
    path.write_text(yaml.safe_dump({"model": "lenett", "data": "digits", "learner": learner, "target": target}))
    done = pfray("run", str(path), "serach.trials=3")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for key in ("serach", "target.sparsity", "model: unknown name 'lenett'", "learner.begn: unknown key"):
        assert sum(key in line for line in errors) == 1, key
    assert len(errors) == 4


def test_a_file_that_is_no_yaml_is_reported_before_torch_is_imported(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("model: [")
    done = pfray("run", str(path))
    error, imported = done.stderr.splitlines()
    assert done.returncode == 2
    assert error.startswith("error: ")
    assert imported == "imported:"


def test_a_command_that_does_not_exist_is_one_line_with_the_nearest_name():
    done = pfray("rn", DEMO)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "error: python -m pfray: unknown command 'rn'. Allowed: run, inspect, submit, bench, report. "
        "Did you mean 'run'? Remedy: python -m pfray --help"
    )
    assert pfray().returncode == 2


def test_check_finds_what_can_be_found_without_training_and_writes_nothing(tmp_path):
    done = pfray("run", DEMO, "--check", f"storage={tmp_path}/runs")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "mobilenet_sparse is valid: 15 knobs, and the target can be reached"
    assert done.stderr == "imported: torch ray\n"
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs" / "mobilenet_sparse").mkdir(parents=True)
    (tmp_path / "runs" / "mobilenet_sparse" / "experiment.yaml").touch()
    done = pfray("run", DEMO, "--check", "--quiet", f"storage={tmp_path}/runs")
    assert done.stdout.splitlines() == [
        "mobilenet_sparse is valid: 15 knobs, and the target can be reached",
        f"note: a run would be refused: {tmp_path}/runs/mobilenet_sparse holds a run, unfinished. Remedy: --resume to "
        "continue it, --force to replace it, or name=...",
    ]
    assert done.returncode == 0
    done = pfray("run", DEMO, "--check", "target.macs=0.5x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: target.macs: weight_sparse cannot change it")


def test_report_makes_the_reports_of_run_folders_again(tmp_path):
    folders = [write_run(tmp_path / name, SUMMARY, TRIALS) for name in ("one", "two")]
    done = pfray("report", *map(str, folders))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(folder / "report.html") for folder in folders]
    assert all("mobilenet_sparse" in (folder / "report.html").read_text() for folder in folders)


def test_a_folder_without_a_summary_has_no_report_and_one_line_says_so(tmp_path):
    done = pfray("report", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == (
        f"error: {tmp_path}/summary.json: missing. Remedy: name the folder of a finished run"
    )
