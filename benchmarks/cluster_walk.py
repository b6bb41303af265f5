"""Runs the commands of the guide's section on a cluster of one's own, on this machine.

``configs/cluster/on_premise.sh`` starts a head, which gets an experiment as a job; then a worker joins, and a run finds
the cluster by its address. The token is made here. Prints each command, its exit code and its seconds; the exit code
is 1 if a command ended with an unexpected one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.raylets import free_ports
from benchmarks.result import ROOT

COMMANDS = str(ROOT / "configs" / "cluster" / "on_premise.sh")
EXPERIMENT = """
model: lenet
data: digits
learner: weight_sparse
target: {sparsity: 75%}
teacher: {epochs: 4}
finetune: {epochs: 1}
search: {name: random, trials: 4, baselines: []}
export: {tflite: false}
"""


@contextlib.contextmanager
def started(role: Sequence[str], port: int, variables: Mapping[str, str]) -> Iterator[None]:
    """One half of the pair of commands, for the length of the block; the block begins when the port answers."""
    command = [COMMANDS, *role, "--block", "--num-cpus=1", "--object-store-memory=150000000", "--disable-usage-stats"]
    print(shlex.join(command), flush=True)
    process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"it ended or did not answer (exit code {process.poll()})")
            time.sleep(0.5)
        yield
    finally:
        process.terminate()  # Ray then ends what it started
        process.wait()


def walk(folder: Path, python: str) -> list[str]:
    """The commands that ended otherwise than they should."""
    port, dashboard = free_ports(2)
    (folder / "walk.yaml").write_text(EXPERIMENT)
    variables = {
        **{name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")},
        "RAY_PORT": str(port), "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_AUTH_MODE": "token",
        "PYTHONPATH": str(ROOT), "PFRAY_CACHE": str(folder / "cache"),
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    wrong: list[str] = []

    def do(expected: int, words: str, *arguments: str, **changed: str) -> None:
        command = ["python", "-m", *arguments]
        begun = time.monotonic()
        done = subprocess.run(
            command, cwd=folder, env={**variables, **changed}, capture_output=True, text=True, timeout=900
        )
        text = done.stdout + done.stderr
        good = done.returncode == expected and words in text
        print(f"{shlex.join(command)}: exit code {done.returncode}, {time.monotonic() - begun:.0f} s", flush=True)
        if not good:
            wrong.append(shlex.join(command))
            print(f"  expected {expected} and '{words}' in\n{text}")

    server = f"http://127.0.0.1:{dashboard}"
    # Sockets want short names.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as short:
        head = ["head", f"--dashboard-port={dashboard}", f"--temp-dir={short}"]
        with started(head, dashboard, variables):
            do(1, "wants another token", "pfray.submit", "walk.yaml", "--address", server, RAY_AUTH_TOKEN="another" * 3)
            do(0, "walk: exit code 0", "pfray.submit", "walk.yaml", "--address", server, "--wait")
            do(0, "SUCCEEDED", "pfray.submit", "walk.yaml", "--status")
            with started(["worker", "127.0.0.1"], port, variables):
                do(0, "direct: 75 % sparsity", "pfray.run", "walk.yaml", "name=direct",
                   f"resources.address=127.0.0.1:{port}")  # fmt: skip
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster_walk",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", default=sys.executable, help="the Python whose environment has Ray (default: this)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pfray-walk-") as folder:
        wrong = walk(Path(folder), options.python)
    print(f"{len(wrong)} commands ended otherwise than they should" if wrong else "all as it should be")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
