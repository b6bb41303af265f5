"""Experiments as jobs: what is sent, kept, shown and refused. The client is Ray's, the server a stand-in."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pfray.cluster import jobs
from pfray.errors import ClusterError
from pfray.submit import main
from tests.job_server import JobServer


@pytest.fixture
def server(monkeypatch):
    # Ray lets it win over any other address; what the command line says has to hold.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    # A token would be kept by this process, and be shown to the Ray of other tests.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    server = JobServer()
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with two experiments and a run that is not to be sent along."""
    folder = tmp_path / "mine"
    (folder / "runs" / "old").mkdir(parents=True)
    (folder / "runs" / "old" / "model.packed").write_text("large")
    (folder / "my_models.py").write_text("")
    raw = {"model": "lenet", "data": "digits", "learner": "weight_sparse", "target": {"sparsity": 0.5}}
    for name in ("first", "second"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(folder)
    return folder


def ticket(folder: Path, name: str) -> dict:
    return json.loads((folder / "runs" / f".{name}.job.json").read_text())


def test_each_experiment_is_a_job_with_its_code_and_overrides_whose_id_is_kept(server, folder, capsys):
    assert main(["first.yaml", "second.yaml", "search.trials=3", "--resume", "--address", server.address]) == 0
    kept = [ticket(folder, name) for name in ("first", "second")]
    assert capsys.readouterr().out.splitlines() == [f"first: {kept[0]['job']}", f"second: {kept[1]['job']}"]
    assert [entry["address"] for entry in kept] == [server.address] * 2
    assert server.jobs[kept[0]["job"]]["entrypoint"] == (
        f"python -m pfray.run first.yaml search.trials=3 storage={folder}/runs --resume"
    )
    sent = server.jobs[kept[0]["job"]]["runtime_env"]
    files = {Path(name).name for names in server.packages.values() for name in names}
    assert {"first.yaml", "my_models.py", "weight_sparse.py", "layerwise.py", "submit.py"} <= files
    assert "model.packed" not in files
    assert len(sent["py_modules"]) == 3
    # Nothing lies in a run folder before its run, or the run would refuse it.
    assert not (folder / "runs" / "first").exists()


def test_runs_behind_a_url_stay_there_and_their_jobs_ids_in_the_cache(server, folder, capsys):
    storage = f"file://{folder}/bucket"
    assert main(["first.yaml", f"storage={storage}", "--address", server.address]) == 0
    [job] = server.jobs.values()
    assert job["entrypoint"] == f"python -m pfray.run first.yaml storage={storage} storage={storage}"
    capsys.readouterr()
    assert main(["first.yaml", f"storage={storage}", "--status"]) == 0
    assert capsys.readouterr().out.endswith("SUCCEEDED, exit code 0\n")
    assert not (folder / "runs" / ".first.job.json").exists()


def test_waiting_shows_the_logs_and_ends_with_the_jobs_exit_code(server, folder, capsys):
    assert main(["first.yaml", "--wait", "--address", server.address]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "[load] started", "[load] done in 1.5 s", "last", "first: exit code 0",
    ]  # fmt: skip
    server.exits = {"second.yaml": 2}
    assert main(["first.yaml", "second.yaml", "--wait", "--address", server.address]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert {"[first] [load] started", "[second] [load] started", "second: exit code 2"} <= set(lines)


def test_status_and_stop_find_a_job_by_its_experiment_and_by_its_id(server, folder, capsys):
    assert main(["first.yaml", "--address", server.address]) == 0
    job = ticket(folder, "first")["job"]
    capsys.readouterr()
    assert main(["first.yaml", "--status"]) == 0
    assert capsys.readouterr().out == f"first.yaml: {job} SUCCEEDED, exit code 0\n"
    assert main([job, "--stop", "--address", server.address]) == 0
    assert main(["first.yaml", "--stop"]) == 0
    assert capsys.readouterr().out == f"{job}: {job} stopped\nfirst.yaml: {job} had ended already\n"
    assert main([job, "--status", "--address", server.address]) == 0
    assert "STOPPED" in capsys.readouterr().out


def test_a_job_that_was_stopped_while_one_waits_is_no_success(server, folder):
    client = jobs.connect(server.address)
    jobs.submit(client, "mine", "python -m pfray.run first.yaml", {})
    assert jobs.stop(client, "mine")
    said = []
    assert jobs.follow(client, {"first": "mine"}, lambda name, line: said.append(line)) == {"first": 1}
    assert said[-1] == "STOPPED: Job was intentionally stopped."


def test_a_cluster_that_has_just_been_started_is_asked_again_for_a_while(server, folder, monkeypatch):
    monkeypatch.setattr(jobs, "PAUSE", 0.0)
    client = jobs.connect(server.address)
    server.young = 3
    jobs.submit(client, "mine", "python -m pfray.run first.yaml", {})
    assert "mine" in server.jobs
    monkeypatch.setattr(jobs, "STARTUP_TIMEOUT", 0.0)
    server.young = 3
    with pytest.raises(ClusterError, match="No available agent"):
        jobs.submit(client, "yours", "python -m pfray.run first.yaml", {})


@pytest.mark.parametrize(("arguments", "words"), [
    (["missing.yaml"], "missing.yaml"),
    ([], "no experiment is given"),
    (["first.yaml", "first.yaml"], "two experiments are named 'first'"),
    (["first.yaml", "search.trials=-1"], "search.trials"),
    (["first.yaml", "--working-dir", "runs"], "which is all that a job sees"),
    (["first.yaml", "--requirements", "none.txt"], "none.txt is not a file"),
    (["second.yaml", "--status"], "has not been sent from here"),
    (["no-such-job", "--status"], "no job 'no-such-job' at"),
    (["no-such-job", "--stop"], "no job 'no-such-job' at"),
    (["--status"], "no experiment and no job id"),
])  # fmt: skip
def test_a_wrong_request_sends_nothing_and_says_what_to_do(server, folder, capsys, arguments, words):
    assert main([*arguments, "--address", server.address]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert words in errors[0]
    assert not server.jobs


@pytest.mark.parametrize(("variables", "shown"), [
    ({}, "that of the file"), ({"RAY_AUTH_MODE": "disabled"}, ""),
])  # fmt: skip
def test_the_token_that_ray_finds_is_shown_to_the_cluster_unless_told_otherwise(tmp_path, variables, shown):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("that of the file")
    code = (
        "from pfray.cluster.access import show_token; show_token()\n"
        "from ray._private.authentication import http_token_authentication as http\n"
        "print(*(value.removeprefix('Bearer ') for value in http.get_auth_headers_if_auth_enabled({}).values()))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    variables = {**kept, "HOME": str(tmp_path), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=300)
    assert done.stdout == shown + "\n"


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_token_is_said_to_be_one_and_never_shown(server, folder, capsys, status, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-token")
    server.refuse = status
    assert main(["first.yaml", "--address", server.address]) == 1
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert "wants another token" in errors
    assert "RAY_AUTH_TOKEN_PATH" in errors
    assert "secret-token" not in errors


def test_an_address_where_nobody_is_or_nobody_answers_is_an_error(folder, capsys, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        # Nothing listens there yet, then something that takes the call and says nothing.
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert main(["first.yaml", "--address", address]) == 1
        assert f"no job server answers at '{address}'" in capsys.readouterr().err
        silent.listen()
        assert jobs.ANSWER_TIMEOUT <= 30
        monkeypatch.setattr(jobs, "ANSWER_TIMEOUT", 0.1)
        assert main(["first.yaml", "--address", address]) == 1
        assert "timed out" in capsys.readouterr().err
    assert main(["first.yaml", "--address", "nonsense"]) == 1
    assert "no job server answers at 'nonsense'" in capsys.readouterr().err
    assert not list((folder / "runs").glob(".*.job.json"))


@pytest.mark.parametrize(
    "more", [["storage=s3://SECRETOFMINE@runs"], ["storage=s3://me:SECRETOFMINE@runs"],
             ["--address", "http://SECRETOFMINE@127.0.0.1:9"]],
)  # fmt: skip
def test_a_secret_in_a_url_is_refused_and_neither_sent_nor_kept_nor_shown(server, folder, capsys, more):
    more = more if "--address" in more else [*more, "--address", server.address]
    assert main(["first.yaml", *more]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert "Remedy: leave" in printed.err
    assert "SECRETOFMINE" not in printed.err
    assert server.jobs == {}
    assert not list(folder.rglob(".*.job.json"))
