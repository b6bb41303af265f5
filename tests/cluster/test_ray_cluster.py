"""Runs on a cluster of several raylets on this machine, of which some are lost; a job on a real job server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from benchmarks.raylets import cluster
from pfray.cluster import jobs
from tests.test_faults import check_complete

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@pytest.fixture
def raylets() -> Iterator[Cluster]:
    with cluster(2) as found:
        yield found


@pytest.fixture
def head(monkeypatch) -> Iterator[Cluster]:
    # A job's command is "python", as a shell on the cluster's machines finds it.
    monkeypatch.setenv("PATH", os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    with cluster(0, head_cpus=1, dashboard=True) as found:
        yield found


def write(folder: Path, quick: dict, **learner: Any) -> Path:
    learner = {"name": "tests.faults:Faulty", "counter": str(folder / "counter"), **learner}
    path = folder / "lost.yaml"
    raw = {**quick, "learner": learner, "finetune": {"epochs": 0}, "export": {"tflite": False}}
    path.write_text(yaml.safe_dump({**raw, "resources": {"parallel": 2}}))
    return path


def wait_until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What ``condition`` gives, once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_a_submitted_job_survives_its_client(head, tmp_path, quick):
    path = write(tmp_path, quick, fault="wait", at=2, release=str(tmp_path / "release"))
    address = f"http://{head.webui_url}"
    command = [sys.executable, "-m", "pfray.submit", str(path), "--address", address, "--working-dir", str(tmp_path)]
    with subprocess.Popen([*command, "--wait"], stdout=subprocess.PIPE, text=True) as client:
        counter = tmp_path / "counter"
        wait_until(lambda: client.poll() is not None or (counter.exists() and counter.stat().st_size == 2))
        assert client.poll() is None, client.communicate()[0]
        client.send_signal(signal.SIGKILL)
    from ray.util.state import list_actors

    ticket = json.loads((Path(quick["storage"]) / ".lost.job.json").read_text())
    server = jobs.connect(address)
    assert jobs.details(server, ticket["job"]).status.value == "RUNNING"
    # As the dashboard shows them: trials under the learner's name.
    assert "Faulty" in {actor.class_name for actor in list_actors(address, filters=[("state", "=", "ALIVE")])}
    (tmp_path / "release").touch()
    ended = wait_until(lambda: (found := jobs.details(server, ticket["job"])).status.value in jobs.ENDED and found)
    assert (ended.status.value, ended.driver_exit_code) == ("SUCCEEDED", 0)
    check_complete(Path(quick["storage"]) / "lost")


def test_a_search_that_loses_a_machine_finishes_with_every_trial_once(raylets, tmp_path, quick):
    path = write(tmp_path, quick, fault="node", at=3)
    command = [sys.executable, "-m", "pfray.run", str(path), f"resources.address={raylets.address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lost = [node for node in raylets.worker_nodes if node.all_processes["raylet"][0].process.poll() is not None]
    assert len(lost) == 1
    check_complete(Path(quick["storage"]) / "lost")
