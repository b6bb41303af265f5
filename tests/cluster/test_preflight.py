"""Clusters that cannot be used, and how soon and clearly that is said.

The cluster is two raylets of the pair of commands in configs/cluster, with a token; only its head finds the user's own
module."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from benchmarks.raylets import free_ports
from pfray.cluster import access, ray_cluster
from pfray.cluster.preflight import find_missing
from pfray.errors import ConfigError
from tests.conftest import ROOT

COMMANDS = ROOT / "configs" / "cluster" / "on_premise.sh"
TOKEN = "the-token-of-the-tests-0123456789"
OWN = """
from pfray.models.lenet import lenet

class Mine(type(lenet(in_channels=1))):
    pass

def build(num_outputs=10, in_channels=1):
    model = lenet(num_outputs, in_channels)
    model.__class__ = Mine
    return model
"""
# What a driver meets at the cluster's address, in a process of its own, because Ray reads its token once.
DRIVER = """
import os, sys, time
from pfray.cluster import ray_cluster
from pfray.errors import PfrayError
from ray._raylet import GcsClient

def attempt(address):
    started = time.monotonic()
    try:
        print("reached", ray_cluster.reach(address))
    except PfrayError as error:
        print(type(error).__name__, "in time" if time.monotonic() - started < 30 else "late", error)

if sys.argv[2:] == ["unasked"]:
    import ray._private.services as services
    services.find_bootstrap_address = lambda folder: sys.argv[1]  # as if `ray start` had left it
    attempt(None)
else:
    attempt(sys.argv[1])
if sys.argv[2:] == ["versions"]:
    client, place = GcsClient(address=sys.argv[1]), dict(namespace=b"cluster")
    true = client.internal_kv_get(b"CLUSTER_METADATA", **place)
    for old, new in ((b'"ray_version": "2', b'"ray_version": "1'), (b'"python_version": "3', b'"python_version": "2')):
        client.internal_kv_put(b"CLUSTER_METADATA", true.replace(old, new), True, **place)
        attempt(sys.argv[1])
    client.internal_kv_put(b"CLUSTER_METADATA", true, True, **place)
sys.stdout.flush()
os._exit(0)
"""


def environment(*paths: Path, token: str = TOKEN) -> dict[str, str]:
    # The last two are those of a Ray that other tests have for themselves: with them no raylet joins another.
    hidden = ("RAY_ADDRESS", "PYTHONPATH", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", access.CLUSTERS)
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {
        **kept, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *paths))), "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # On a busy machine a raylet's agents take longer than Ray waits for them.
        "RAY_agent_register_timeout_ms": "90000",
    }  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine_only_here.py").write_text(OWN)
    return folder


@pytest.fixture(scope="module")
def address(own) -> Iterator[str]:
    """Where the head of the two raylets is."""
    (port,) = free_ports(1)
    # Sockets have short names; and the file in which Ray looks for a cluster that is up stays as it is.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    common = ["--block", "--num-cpus=1", "--object-store-memory=150000000", "--disable-usage-stats"]
    raylets = [
        ([COMMANDS, "head", "--include-dashboard=false", f"--temp-dir={folder}", *common], environment(own)),
        ([COMMANDS, "worker", "127.0.0.1", *common], environment()),
    ]
    with ExitStack() as closing:
        closing.callback(shutil.rmtree, folder, ignore_errors=True)
        for command, variables in raylets:
            process = subprocess.Popen(
                command, env={**variables, "RAY_PORT": str(port)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            closing.callback(process.wait)
            closing.callback(process.terminate)  # Ray then ends what it started
            deadline = time.monotonic() + 100
            while command[1] == "head" and socket.socket().connect_ex(("127.0.0.1", port)):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield f"127.0.0.1:{port}"


def told(address: str, *arguments: str, token: str = TOKEN) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, address, *arguments], env=environment(token=token), capture_output=True,
        text=True, timeout=200,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_cluster_of_another_ray_or_python_is_said_to_be_one(address):
    reached, ray, python = told(address, "versions")
    assert reached == f"reached {address}"
    assert re.match(rf"ClusterError in time .*{address} has other versions: Ray 1\.\S+ there, 2\.\S+ here\. R", ray)
    assert re.match(r"ClusterError in time .*: Python 2\.\S+ there, 3\.\S+ here\. Remedy", python)


def test_a_wrong_token_is_said_to_be_one_and_not_shown(address):
    [line] = told(address, token="another-token-0123456789")
    assert line.startswith(f"ClusterError in time resources.address: the cluster at {address} wants another token. ")
    assert "RAY_AUTH_TOKEN_PATH" in line
    assert "another-token" not in line


def test_a_wrong_token_for_a_ray_that_nobody_asked_for_has_another_remedy_too(address):
    [line] = told(address, "unasked", token="another-token-0123456789")
    assert re.match(rf"ClusterError in time the Ray of this machine at {address}, which a run without an address uses, "
                    r"wants another token\. Remedy: RAY_AUTH_MODE=.* or --address local", line)  # fmt: skip


def test_a_machine_without_the_users_own_module_is_named_before_the_search(address, own, quick, tmp_path):
    experiment = tmp_path / "exp.yaml"
    raw = {**quick, "model": {"factory": "mine_only_here:build"}, "resources": {"address": address}}
    experiment.write_text(yaml.safe_dump(raw))
    deadline = time.monotonic() + 100
    while count_nodes(address) != "2" and time.monotonic() < deadline:
        time.sleep(0.5)
    done = subprocess.run(
        [sys.executable, "-m", "pfray.run", str(experiment)], env=environment(own), cwd=tmp_path, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.match(r"error: the machine \S+: what a trial needs cannot be loaded \(ModuleNotFoundError: No module "
                    r"named 'mine_only_here'\)\. Remedy: the code at the same path", line)  # fmt: skip
    assert TOKEN not in done.stderr + done.stdout
    assert not (Path(quick["storage"]) / "exp").exists()
    assert not list(Path(quick["storage"]).glob(".*.here"))


def count_nodes(address: str) -> str:
    code = "import sys; from ray._raylet import GcsClient as C; print(len(C(address=sys.argv[1]).get_all_node_info()))"
    done = subprocess.run(
        [sys.executable, "-c", code, address], env=environment(), capture_output=True, text=True, timeout=100
    )
    return done.stdout.strip()


def test_a_folder_that_only_this_machine_has_is_named(tmp_path):
    pickled = pickle.dumps(None)
    (tmp_path / "mark").touch()
    assert find_missing(pickled, str(tmp_path / "mark")) is None
    problem = find_missing(pickled, str(tmp_path / "none" / "mark"))
    assert f"the folder {tmp_path}/none is another one there, or none. Remedy: storage=..." in problem


def test_an_address_where_nobody_is_or_nobody_answers_is_refused_at_once(monkeypatch):
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at '127\.0\.0\.1:1' \(.*refused\)\. Remedy"):
        ray_cluster.reach("127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at 'no\.such\.host\.invalid:6379'"):
        ray_cluster.reach("no.such.host.invalid:6379")
    monkeypatch.setattr(ray_cluster, "cluster_versions", lambda address: time.sleep(5))
    monkeypatch.setattr(ray_cluster, "ANSWER_TIMEOUT", 0.1)
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at '127\.0\.0\.1:1' \(no answer within 0 s\)"):
        ray_cluster.reach("127.0.0.1:1")
    for left_to_ray in ("auto", "ray://head:10001"):
        assert ray_cluster.reach(left_to_ray) == left_to_ray


def test_a_ray_that_has_died_and_is_found_unasked_is_said_to_be_one(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # or a token of this user would be kept by the process
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"of this machine at 127\.0\.0\.1:1, .* answer \(.*'ray stop', or --ad"):
        ray_cluster.reach(None)
    assert ray_cluster.reach("local") is None
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: None)
    assert ray_cluster.reach(None) is None


def test_a_share_that_no_single_machine_has_is_refused(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 8}}, {"Alive": True, "Resources": {"CPU": 1, "GPU": 2}}]
    monkeypatch.setattr(ray_cluster.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray_cluster.ray, "cluster_resources", lambda: {"CPU": 9, "GPU": 2})
    with pytest.raises(ConfigError, match=r"trial: no machine of the cluster has 4 CPU and 0\.5 GPU together\. Remedy"):
        ray_cluster.check_room(4, 0.5, 1)
    ray_cluster.check_room(8, 0, 1)
    ray_cluster.check_room(1, 0.5, 1)

