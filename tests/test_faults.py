"""Runs that are killed, interrupted or broken in the middle. What is killed is a process with a Ray of its own."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
import ray
import yaml

from pfray.config.schema import load
from pfray.run import main, run
from pfray.search._trial_log import read_trials
from pfray.search.base import PlanSearcher

DRIVER = """
import os, pathlib, runpy, signal, sys
pathlib.Path(sys.argv[1]).with_name("counter.driver").write_text(str(os.getpid()))
if "PFRAY_TEST_EXPORT" in os.environ:
    from pfray.workflow import finalize
    finalize.export_model = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
runpy.run_module("pfray.run", run_name="__main__", alter_sys=True)
"""


def start(
    experiment: Path, address: str = "local", stdout: int = subprocess.PIPE, **env: str
) -> subprocess.CompletedProcess:
    """A run in a process of its own, in the Ray at ``address`` or one of its own."""
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(experiment)],
        env={**os.environ, "RAY_ADDRESS": address, **env},  # whatever else is up on the machine
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        # Tests that were started in the background are deaf to Ctrl-C, and so would be what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture
def address(ray_cluster: None) -> str:
    """Of the Ray that is up, which outlives its drivers; starting another one takes as long as a run."""
    return ray.get_runtime_context().gcs_address


def write(tmp_path: Path, raw: dict, **fault: object) -> tuple[Path, Path]:
    """(experiment file, run folder) with the faulty learner in place."""
    learner = {"name": "tests.faults:Faulty", "counter": str(tmp_path / "counter"), **fault}
    path = tmp_path / "faulty.yaml"
    path.write_text(yaml.safe_dump({**raw, "learner": learner}))
    return path, Path(raw["storage"]) / "faulty"


def check_complete(folder: Path, trials: int = 6) -> None:
    records = read_trials(folder / "search" / "trials.jsonl")
    assert sorted(record["trial"] for record in records) == list(range(trials))
    assert len({json.dumps(record["plan"]) for record in records}) == trials
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["trials"]["finished"] == trials
    assert summary["compressed"]["size_bytes"] == (folder / "model.packed").stat().st_size
    assert (folder / "report.html").exists()


@pytest.fixture
def raw(quick: dict) -> dict:
    return {**quick, "export": {"tflite": False}}


def test_a_driver_killed_in_the_search_resumes_without_repeating_a_trial(tmp_path, raw, ray_cluster, capsys):
    killed, folder = write(tmp_path, {**raw, "finetune": {"epochs": 0}}, fault="driver", at=4)
    assert start(killed).returncode == -9
    before = (folder / "search" / "trials.jsonl").read_text()
    assert len(before.splitlines()) == 3
    assert not (folder / "summary.json").exists()

    assert main([str(killed)]) == 2
    assert "--resume to continue it" in capsys.readouterr().err
    assert main([str(killed), "--resume"]) == 0
    after = (folder / "search" / "trials.jsonl").read_text()
    assert after.startswith(before)
    check_complete(folder)

    alone = run(load(killed, ["name=alone", "learner.at=99"]))
    plans = [[record["plan"] for record in read_trials(f / "search" / "trials.jsonl")] for f in (folder, alone)]
    assert plans[0] == plans[1]


def test_a_driver_killed_in_the_retraining_resumes_from_a_checkpoint(tmp_path, raw, address):
    search = {"name": "uniform", "trials": 1, "baselines": ["uniform"]}
    raw = {**raw, "search": search, "finetune": {**raw["finetune"], "epochs": 6}}
    killed, folder = write(tmp_path, raw, fault="driver", stage="training", at=80)
    assert start(killed, address).returncode == -9
    trials = (folder / "search" / "trials.jsonl").read_text()

    assert main([str(killed), "--resume"]) == 0
    assert (folder / "search" / "trials.jsonl").read_text() == trials
    check_complete(folder, trials=1)
    epochs = [json.loads(line)["epoch"] for line in (folder / "training/uniform/curve.jsonl").read_text().splitlines()]
    assert sorted(set(epochs)) == [1, 2, 3, 4, 5, 6]
    # Step 80 is in the sixth epoch: the first ones were saved, and are not trained again.
    assert epochs.count(1) == epochs.count(2) == 1


@pytest.mark.parametrize(("fault", "code", "epochs", "own_ray"), [
    ({"fault": "interrupt", "at": 3}, 130, 0, True),
    ({"fault": "interrupt", "stage": "training", "at": 20}, 130, 3, False),
    ({"fault": "terminate", "at": 3}, 143, 0, False),
    ({"fault": "terminate", "stage": "training", "at": 20}, 143, 3, True),
])  # fmt: skip
def test_ctrl_c_and_sigterm_leave_a_run_that_resumes(tmp_path, raw, fault, code, epochs, own_ray, address):
    raw = {**raw, "finetune": {**raw["finetune"], "epochs": epochs}}
    stopped, folder = write(tmp_path, raw, **fault)
    first = start(stopped, "local" if own_ray else address)
    assert first.returncode == code, first.stderr
    assert first.stderr == f"interrupted. Continue with: python -m pfray.run {stopped} --resume\n"
    assert main([str(stopped), "--resume"]) == 0
    check_complete(folder)


def test_a_run_goes_on_without_a_reader_of_its_output_and_sigterm_ends_its_export(tmp_path, raw, ray_cluster):
    search = {"name": "uniform", "trials": 1, "baselines": []}
    path, folder = write(tmp_path, {**raw, "search": search, "finetune": {"epochs": 0}})
    reader, writer = os.pipe()
    os.close(reader)
    # Ray has ended by then, and C++ has given signals back to the system's own handling.
    first = start(path, stdout=writer, PFRAY_TEST_EXPORT="1")
    os.close(writer)
    assert first.returncode == 143, first.stderr
    assert first.stderr.splitlines() == [
        "note: standard output is closed; the command goes on without it",
        f"interrupted. Continue with: python -m pfray.run {path} --resume",
    ]
    assert main([str(path), "--resume"]) == 0
    check_complete(folder, trials=1)


def test_a_trial_whose_worker_dies_is_run_again(tmp_path, raw, ray_cluster):
    raw = {**raw, "finetune": {"epochs": 0}, "resources": {"parallel": 2}}
    path, _ = write(tmp_path, raw, fault="worker", at=3)
    check_complete(run(load(path)))


@pytest.mark.parametrize(("fault", "words"), [
    ("raise", "a layer <of this plan> broke"),
    ("nan", "the loss on the validation images is nan"),
])  # fmt: skip
def test_a_trial_that_fails_is_reported_with_its_plan_and_the_search_goes_on(tmp_path, raw, ray_cluster, fault, words):
    path, _ = write(tmp_path, {**raw, "finetune": {"epochs": 0}}, fault=fault, at=3)
    folder = run(load(path))
    assert json.loads((folder / "summary.json").read_text())["trials"] == {"finished": 5, "failed": 1, "best": ANY}
    failed = [r for r in read_trials(folder / "search" / "trials.jsonl") if r["error"]]
    assert words in failed[0]["error"]
    assert failed[0]["plan"]
    assert "<of this plan>" not in (folder / "report.html").read_text()


def test_a_retraining_that_diverges_fails_with_one_line(tmp_path, raw, ray_cluster, capsys):
    path, folder = write(tmp_path, raw, fault="nan", stage="training", at=20)
    assert main([str(path)]) == 1
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert "an lr below 0.02" in errors
    assert not (folder / "summary.json").exists()


def test_a_search_without_one_usable_trial_fails_with_the_cause(tmp_path, raw, ray_cluster, capsys):
    path = tmp_path / "broken.yaml"
    search = {**raw["search"], "trials": 3}
    path.write_text(yaml.safe_dump({**raw, "learner": "tests.faults:AlwaysBroken", "search": search}))
    assert main([str(path)]) == 1
    assert "all 3 trials failed; the first error: ValueError: always broken" in capsys.readouterr().err
    assert main([str(path), "--force", "learner=tests.faults:Unprepared"]) == 1
    assert "the first error: ValueError: no moments" in capsys.readouterr().err


def test_a_module_that_workers_cannot_import_ends_the_search_at_once_and_is_named(
    tmp_path, raw, ray_cluster, capsys, monkeypatch
):
    (tmp_path / "only_here.py").write_text(
        "from learners.weight_sparse import WeightSparse\nclass Mine(WeightSparse):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)  # of this process; Ray has begun before
    path = tmp_path / "missing.yaml"
    path.write_text(yaml.safe_dump({**raw, "learner": "only_here:Mine"}))
    assert main([str(path)]) == 1
    assert capsys.readouterr().err == (
        "error: a worker of Ray cannot import the module 'only_here'. Remedy: install it where the workers run, or name"
        " its folder in PYTHONPATH before Ray starts\n"
    )
    assert read_trials(Path(raw["storage"]) / "missing" / "search" / "trials.jsonl") == []


def test_a_full_disk_in_the_search_is_a_clear_error_and_the_run_resumes(
    tmp_path, raw, ray_cluster, capsys, monkeypatch
):
    path = tmp_path / "full.yaml"
    path.write_text(yaml.safe_dump({**raw, "finetune": {"epochs": 0}}))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "trials.jsonl")

    with monkeypatch.context() as patch:
        patch.setattr(PlanSearcher, "write_record", full)
        assert main([str(path)]) == 1
    assert "trials.jsonl cannot be written (No space left on device)" in capsys.readouterr().err
    assert main([str(path), "--resume"]) == 0
    check_complete(Path(raw["storage"]) / "full")
