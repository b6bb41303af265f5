"""Who can reach a run's own Ray, tried from beside it and from another network namespace; tokens that cannot be."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from pfray.cluster import access, jobs
from pfray.cluster.ray_cluster import reach
from pfray.errors import ConfigError, TrainingFailed
from pfray.submit import main
from tests.conftest import ROOT
from tests.namespaces import HERE, Namespaces, two_namespaces

# A run's own Ray with a worker, for as long as its stdin is open; says what listens, and what is left at the end.
RAY = """
import glob, json, os, sys
from rich.console import Console
from pfray.reporting.observers import Observers
from pfray.reporting.progress import Progress
from pfray.cluster.ray_cluster import ray_session

before = dict(os.environ)
with ray_session(Observers([Progress(Console(file=sys.stderr))])):
    import ray, psutil
    ray.get(ray.remote(lambda: None).remote())
    own = psutil.Process()
    family = [own, *own.children(recursive=True)]
    ports = [(c.laddr.ip, c.laddr.port) for p in family for c in p.net_connections("tcp") if c.status == "LISTEN"]
    gcs = ray.get_runtime_context().gcs_address
    token, folder = os.environ["RAY_AUTH_TOKEN"], os.environ["RAY_TMPDIR"]
    commands = "".join(" ".join(p.cmdline()) for p in family)
    print(json.dumps({"ports": ports, "gcs": gcs, "folder": folder, "in_commands": token in commands}), flush=True)
    sys.stdin.read()
    said = [path for path in glob.glob(f"{folder}/**", recursive=True) if os.path.isfile(path)]
    said = [path for path in said if token.encode() in open(path, "rb").read()]
changed = [name for name in {*before, *os.environ} if "AUTH" in name and before.get(name) != os.environ.get(name)]
print(json.dumps({"said": said, "changed": changed, "left": os.path.exists(folder)}))
"""
# What each port answers to one who has no token: the connection, gRPC calls that run code, and HTTP ones.
KNOCK = """
import json, socket, sys
import grpc
host, ports = sys.argv[1], json.loads(sys.argv[2])
CALLS = ("CoreWorkerService/PushTask", "NodeManagerService/RequestWorkerLease", "ObjectManagerService/Push",
         "InternalKVGcsService/InternalKVGet", "JobInfoGcsService/AddJob", "ReporterService/GetTraceback")
as_is = dict(request_serializer=bytes, response_deserializer=bytes)
answers = {}
for port in ports:
    with socket.socket() as knock:
        knock.settimeout(20)
        code = knock.connect_ex((host, port))
    answers[port] = ["no"] if code else []
    if code == 0:
        with grpc.insecure_channel(f"{host}:{port}") as channel:
            for call in CALLS:
                try:
                    channel.unary_unary(f"/ray.rpc.{call}", **as_is)(b"", timeout=20)
                    answers[port].append(f"{call} done")
                except grpc.RpcError as error:
                    answers[port].append(error.code().name)
                    if answers[port][-1] == "UNAVAILABLE":  # no gRPC
                        break
print(json.dumps(answers))
"""
CONNECT = """
import sys, ray
from ray._raylet import GcsClient
try:
    print(len(GcsClient(address=sys.argv[1]).get_all_node_info()))
except ray.exceptions.AuthenticationError:
    print("refused")
"""


def variables(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | more


@dataclass
class Running:
    """A run's own Ray. ports: where it listens. gcs: where drivers and workers join. begin: of a command beside it."""

    process: subprocess.Popen
    namespaces: Namespaces | None
    reason: str
    ports: list[tuple[str, int]]
    gcs: str
    folder: str
    in_commands: bool

    def ask(self, code: str, *arguments: str, there: bool = False, **more: str) -> str:
        begin = (self.namespaces.there if there else self.namespaces.here) if self.namespaces else []
        command = [*begin, sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, env=variables(**more), capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def knock(self, host: str, *, there: bool) -> dict[str, list[str]]:
        return json.loads(self.ask(KNOCK, host, json.dumps([port for _, port in self.ports]), there=there))


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with ExitStack() as closing:
        namespaces, reason = None, ""
        try:
            namespaces = closing.enter_context(two_namespaces())
        except PermissionError as error:
            reason = str(error)
        process = subprocess.Popen(
            [*(namespaces.here if namespaces else []), sys.executable, "-c", RAY], env=variables(PYTHONPATH=str(ROOT)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        closing.callback(process.wait)
        assert process.stdin is not None
        closing.callback(process.stdin.close)
        assert process.stdout is not None
        yield Running(process, namespaces, reason, **json.loads(process.stdout.readline()))


def test_a_runs_own_ray_listens_on_the_loopback_interface_alone(running):
    assert len(running.ports) >= 5  # driver, GCS, raylet, object manager, worker
    assert {host.removeprefix("::ffff:") for host, _ in running.ports} == {"127.0.0.1"}
    folder = Path(running.folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.glob("ray/session_*/sockets/raylet"))


def test_nothing_of_a_runs_own_ray_answers_another_machine(running):
    if running.namespaces is None:
        pytest.skip(running.reason)
    assert running.knock(HERE, there=True) == {str(port): ["no"] for _, port in running.ports}


def test_beside_a_runs_own_ray_nothing_is_done_without_its_token(running):
    answers = running.knock("127.0.0.1", there=False)
    harmless = {"UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE"}
    assert {answer for each in answers.values() for answer in each} <= harmless
    assert sum("UNAUTHENTICATED" in each for each in answers.values()) >= 5
    for more in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another-token"}):
        assert running.ask(CONNECT, running.gcs, **more) == "refused\n"


def test_a_runs_token_is_nowhere_to_be_read_and_ends_with_its_ray(running):
    # The last of those that use it.
    assert not running.in_commands
    running.process.stdin.close()
    assert json.loads(running.process.stdout.readline()) == {"said": [], "changed": [], "left": False}
    assert running.process.wait() == 0


@pytest.fixture
def no_ray(monkeypatch, tmp_path) -> Path:
    """The home of a user who has set nothing, while no Ray is up; not told to the Ray that other tests have."""
    for name in list(os.environ):
        if name.startswith("RAY_AUTH") or name in ("RAY_TMPDIR", access.CLUSTERS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("pfray.cluster.access.reload_token_settings", lambda: None)
    return tmp_path


def test_the_file_with_a_runs_token_is_its_users_alone(no_ray):
    with access.private_ray(token_file=True) as token:
        assert token.read_text() == os.environ["RAY_AUTH_TOKEN"]
        assert len(token.read_text()) == 64
        assert [stat.S_IMODE(path.stat().st_mode) for path in (token, token.parent)] == [0o600, 0o700]
        assert token.parent.parent == Path(tempfile.gettempdir())
        first = token.read_text()
    assert not token.parent.exists()
    with access.private_ray(token_file=True) as token:
        assert token.read_text() != first
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_logs_stay_after_a_failure_and_not_after_a_wrong_request(no_ray):
    left = {}
    for error in (TrainingFailed(""), ValueError(), ConfigError(""), SystemExit(15)):
        with pytest.raises(type(error)), access.private_ray(token_file=True) as token:
            raise error
        left[type(error)] = token.parent.exists()
        assert not token.exists()
        if left[type(error)]:
            shutil.rmtree(token.parent)
    assert left == {TrainingFailed: True, ValueError: True, ConfigError: False, SystemExit: False}


@pytest.mark.parametrize("own", [
    {"RAY_AUTH_MODE": "disabled"},
    {"RAY_AUTH_TOKEN": "mine"},
    {"RAY_AUTH_TOKEN_PATH": "mine.txt"},
    {"RAY_AUTH_MODE": "token"},
    {"RAY_TMPDIR": "/tmp/mine", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"},
])  # fmt: skip
def test_what_the_user_has_set_is_kept(no_ray, monkeypatch, own):
    if own == {"RAY_AUTH_MODE": "token"}:
        (no_ray / ".ray").mkdir()
        (no_ray / ".ray" / "auth_token").write_text("mine")
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with access.private_ray(token_file=True) as token:
        assert own.items() <= os.environ.items()
        assert ("RAY_AUTH_TOKEN" in os.environ) == (own.keys() <= {"RAY_AUTH_TOKEN", "RAY_TMPDIR", access.CLUSTERS})
        assert (token is not None) == ("RAY_TMPDIR" in own)
        assert os.environ["RAY_AUTH_MODE"] == own.get("RAY_AUTH_MODE", "token")
    assert dict(os.environ) == before


@pytest.mark.parametrize(("named", "said"), [
    ({"RAY_AUTH_TOKEN_PATH": "{}/none"}, r"RAY_AUTH_TOKEN_PATH: '.*/none' cannot be read \(No such file or d"),
    ({"RAY_AUTH_TOKEN_PATH": "{}"}, r"RAY_AUTH_TOKEN_PATH: '.*' cannot be read \(not a regular file\)\. Remedy: a"),
    ({"RAY_AUTH_TOKEN_PATH": "{}/pipe"}, r"RAY_AUTH_TOKEN_PATH: '.*/pipe' cannot be read \(not a regular file\)\. Rem"),
    ({"RAY_AUTH_TOKEN_PATH": "{}/empty"}, r"RAY_AUTH_TOKEN_PATH: '.*/empty' is empty\. Remedy: a file that holds the"),
    ({"RAY_AUTH_TOKEN_PATH": "{}/two"}, r"/two': a token is one line of ASCII characters, and this is none\. Rem"),
    ({"RAY_AUTH_TOKEN": "first\nsecond"}, r"RAY_AUTH_TOKEN: a token is one line of ASCII .* Remedy: the cluster's"),
    ({"RAY_AUTH_MODE": "tokens"}, r"RAY_AUTH_MODE: 'tokens' is not allowed\. Remedy: token, or disabled"),
])  # fmt: skip
def test_a_token_that_cannot_be_is_one_line_for_runs_and_jobs(tmp_path, monkeypatch, capfd, no_ray, named, said):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "two").write_text("first\nsecond\n")
    for name, value in named.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    for ask in (lambda: reach("127.0.0.1:1"), lambda: reach("local"), lambda: jobs.connect("http://127.0.0.1:1")):
        with pytest.raises(ConfigError, match=said) as error:
            ask()
        assert len(str(error.value).splitlines()) == 1
        assert "second" not in str(error.value)
    assert main(["a-job", "--status", "--address", "http://127.0.0.1:1"]) == 2
    out, err = capfd.readouterr()
    assert (out, err) == ("", f"error: {error.value}\n")


def test_with_authentication_off_no_token_is_looked_at(no_ray, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/none")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert reach("local") is None
