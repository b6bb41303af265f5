"""Runs behind a URL that are killed, and go on from another machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import yaml

from pfray.run import main
from pfray.search._trial_log import read_trials
from pfray.storage import remote_lock
from pfray.storage.remote import open_bucket
from pfray.storage.run_folder import RunFolder
from pfray.storage.sync import synchronized
from tests.storage.folders import content, write
from tests.stores import ENVIRONMENT, MISSING, s3_server

# Killed after the third trial, once one is known to the store.
DRIVER = """
import os, signal, sys, time
from pfray.storage import sync
from pfray.storage.remote import open_bucket
from pfray.run import main
from pfray.search.base import PlanSearcher

sync.INTERVAL = 0.01
write = PlanSearcher.write_record

def write_and_die(self, record):
    write(self, record)
    if len(self.records) == 3:
        store, deadline = open_bucket(sys.argv[1]), time.monotonic() + 100
        while not store.read("far/search/trials.jsonl") and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

PlanSearcher.write_record = write_and_die
sys.exit(main(sys.argv[2:]))
"""


def stored(tmp_path: Path, here: Path) -> RunFolder:
    return RunFolder(here, f"file://{tmp_path}/store/exp")


@contextmanager
def session(tmp_path: Path, machine: str, *, resume: bool) -> Iterator[Path]:
    """What a run does to its folder; ends without a word to the store where it is killed."""
    here = tmp_path / machine / "exp"
    here.parent.mkdir(exist_ok=True)
    with synchronized(stored(tmp_path, here), resume=resume) as begin:
        write(here, experiment_yaml="e")
        begin()
        yield here


def test_a_lock_that_a_killed_run_leaves_makes_its_folder_the_newest_one_and_no_other(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(remote_lock, "WATCH", 0.1)
    monkeypatch.setattr(remote_lock, "SETTLE", 0.05)
    with session(tmp_path, "one", resume=False) as here:
        write(here, a="1")
        lock = bucket.read(".exp.lock")
    bucket.write(".exp.lock", lock)  # as if killed, with "b" not sent
    write(here, b="2")
    with session(tmp_path, "one", resume=True) as here:
        assert content(here) == {"experiment.yaml": "e", "a": "1", "b": "2"}
    bucket.write(".exp.lock", lock)
    with session(tmp_path, "other", resume=True) as other:
        assert content(other) == {"experiment.yaml": "e", "a": "1", "b": "2"}
        write(other, a="one more")
    with session(tmp_path, "one", resume=True) as here:
        assert content(here)["a"] == "one more"
    # One that only looked, and was killed before it could let go, has not all of the run.
    with synchronized(stored(tmp_path, here), resume=False):
        assert content(here) == {"experiment.yaml": "e"}
    bucket.write(".exp.lock", lock)
    with session(tmp_path, "one", resume=True) as here:
        assert content(here) == {"experiment.yaml": "e", "a": "one more", "b": "2"}
    assert {name: bucket.read(f"exp/{name}") for name in bucket.names("exp")} == {
        "experiment.yaml": b"e", "a": b"one more", "b": b"2",
    }  # fmt: skip
    with session(tmp_path, "one", resume=False) as here:
        write(here, c="3")
        (here / "b").unlink(missing_ok=True)
        (here / "a").unlink(missing_ok=True)
    assert bucket.names("exp") == ["c", "experiment.yaml"]


def test_what_was_written_last_is_sent_even_when_the_run_fails(tmp_path, bucket):
    def fail() -> None:
        with session(tmp_path, "one", resume=False) as here:
            write(here, a="1")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert bucket.read("exp/a") == b"1"
    assert bucket.read(".exp.lock") is None


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A URL: moto's S3 server where it is installed."""
    monkeypatch.setattr(remote_lock, "WATCH", 1.0)
    monkeypatch.setattr(remote_lock, "SETTLE", 0.5)
    if MISSING:
        yield f"file://{tmp_path}/store"
    else:
        with s3_server():
            yield "s3://runs/deep"


def test_a_killed_run_goes_on_from_another_machine_with_every_trial_once(
    storage, tmp_path, quick, ray_cluster, capfd, monkeypatch
):
    experiment = tmp_path / "far.yaml"
    raw = {**quick, "storage": storage, "finetune": {"epochs": 1}, "export": {"tflite": False}}
    experiment.write_text(yaml.safe_dump(raw))
    environment = {**os.environ, "PFRAY_CACHE": str(tmp_path / "one")}
    # In the Ray that is up, which outlives its driver.
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, storage, str(experiment), f"resources.address={address}"]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert killed.returncode == -9, killed.stderr
    there = open_bucket(storage)
    assert "experiment.yaml" in there.names("far")
    assert "summary.json" not in there.names("far")
    before = there.read("far/search/trials.jsonl")
    assert 1 <= len(before.splitlines()) <= 3
    assert there.read(".far.lock")

    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "another"))
    assert main([str(experiment)]) == 2
    assert f"{storage}/far holds a run, unfinished. Remedy: --resume" in capfd.readouterr().err
    assert main([str(experiment), "--resume"]) == 0
    printed = capfd.readouterr()
    assert f"files: {storage}/far" in printed.out
    assert there.read(".far.lock") is None
    names = there.names("far")
    assert {"summary.json", "report.html", "model.packed", "search/trials.jsonl"} <= set(names)
    assert not [name for name in names if name.startswith("tune/")]
    for name in names:
        there.get(f"far/{name}", tmp_path / "got" / name)
    trials = (tmp_path / "got" / "search" / "trials.jsonl").read_bytes()
    assert trials.startswith(before)
    records = read_trials(tmp_path / "got" / "search" / "trials.jsonl")
    assert sorted(record["trial"] for record in records) == list(range(6))
    assert len({json.dumps(record["plan"]) for record in records}) == 6
    assert json.loads((tmp_path / "got" / "summary.json").read_text())["trials"]["finished"] == 6
    for secret in ENVIRONMENT["AWS_SECRET_ACCESS_KEY"], ENVIRONMENT["AWS_ACCESS_KEY_ID"]:
        assert secret not in printed.out + printed.err
        assert not [n for n in names if secret.encode() in (tmp_path / "got" / n).read_bytes()]

    # A third machine finds it finished, and replaces it only when told to.
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "third"))
    assert main([str(experiment)]) == 2
    assert "holds a run, finished" in capfd.readouterr().err
    assert main([str(experiment), "--resume"]) == 0
    assert f"{storage}/far is finished already" in capfd.readouterr().out
