"""The cluster files of configs/cluster: each loads, and is what the tool that reads it asks for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "cluster"


def test_the_ray_up_file_passes_rays_own_validation_and_asks_for_a_token_everywhere():
    config = yaml.safe_load((FOLDER / "aws.yaml").read_text())
    validate_config(prepare_config(config))
    assert config["head_node_type"] in config["available_node_types"]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    environment = next(command for command in config["setup_commands"] if command.endswith("> ~/.pfray"))
    assert "RAY_AUTH_MODE=token" in environment
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert command.startswith(". ~/.pfray && ")
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


def test_the_kuberay_manifest_has_what_the_operator_needs():
    manifest = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert manifest["spec"]["entrypoint"].startswith("python -m pfray.run experiments/")
    assert (FOLDER.parents[1] / manifest["spec"]["entrypoint"].split()[3]).exists()
    cluster = manifest["spec"]["rayClusterSpec"]
    # The operator makes a token from version 2.52 of Ray on.
    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"]
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    images = set()
    for pod in pods:
        spec = pod["template"]["spec"]
        [container] = spec["containers"]
        images.add(container["image"])
        # Ray takes its processors and memory from the limits.
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
        assert isinstance(pod["rayStartParams"], dict)
        assert all(isinstance(value, str) for value in pod["rayStartParams"].values())
    assert len(images) == 1


def test_the_versions_of_the_files_are_those_that_are_tested():
    pinned = (FOLDER.parents[1] / "constraints.txt").read_text().splitlines()
    manifest = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())
    assert f"ray=={manifest['spec']['rayClusterSpec']['rayVersion']}" in pinned
    assert ray.__version__.split(".")[0] == "2"


@pytest.mark.parametrize(("arguments", "called"), [
    (["head"], "start --head --port=6379 --dashboard-host=127.0.0.1 --dashboard-port=8265 token"),
    (["worker", "10.0.0.1"], "start --address=10.0.0.1:6379 token"),
    ([], None),
    (["worker"], None),
])  # fmt: skip
def test_the_pair_of_commands_starts_ray_with_a_token(tmp_path, arguments, called):
    fake = tmp_path / "ray"
    fake.write_text('#!/bin/sh\necho "$@" "$RAY_AUTH_MODE"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        [FOLDER / "on_premise.sh", *arguments], capture_output=True, text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    if called is None:
        assert done.returncode != 0
        assert "head" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, called + "\n")
