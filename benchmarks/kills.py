"""A search under 20 SIGKILLs of its workers, raylets and driver, compared with the same search undisturbed.

The cluster is a head and two raylets on this machine. The search runs LeNet on the digits with random plans; each trial
sleeps shortly in addition to its measurement, which leaves time for a kill. The victim, and the number of trials until
the next kill, are drawn from a seed:

- a worker: one of the processes that run trials. Tune starts its trial again.
- a raylet: a machine is gone with all its workers; another one is added in its place.
- the driver: the whole process of the run; ``--resume`` starts another.

Nothing is lost if the search ends with every trial number once, each with a score, and with as many different plans as
the undisturbed search.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parser import make_parser
from benchmarks.raylets import add, cluster
from benchmarks.result import close

if TYPE_CHECKING:
    import psutil
    from ray.cluster_utils import Cluster

NAME = "kills"
GOAL = "<= 0"
# Of 20: most often a worker dies.
SHARES = {"worker": 10, "raylet": 5, "driver": 5}
RAYLETS = 2
# Seconds without a new trial after which something hangs.
PATIENCE = 900


def schedule(kills: int, trials: int, seed: int) -> list[tuple[int, str]]:
    """(trials finished before it, what is killed) of each kill, in order; never in the last tenth of the trials."""
    rng = random.Random(seed)
    kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
    kinds = rng.sample(kinds, kills) if kills <= len(kinds) else rng.choices(kinds, k=kills)
    return list(zip(sorted(rng.randrange(1, trials - trials // 10) for _ in kinds), kinds, strict=True))


def experiment(name: str, trials: int, seconds: float, storage: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"name": "lenet"},
        "data": "digits",
        "learner": {"name": "benchmarks.sleeping:Drowsy", "seconds": seconds},
        "target": {"sparsity": 0.8},
        "teacher": {"epochs": 1, "lr": 0.05},
        "search": {"name": "random", "trials": trials, "validation_images": None, "baselines": []},
        "finetune": {"epochs": 0},
        "export": {"tflite": False},
        "storage": storage,
    }


class Driver:
    """The process of the run, started again with ``--resume`` whenever it was killed."""

    def __init__(self, file: Path, address: str) -> None:
        self.command = [sys.executable, "-m", "pfray.run", str(file), f"resources.address={address}"]
        self.log = file.with_suffix(".log")
        self.start()

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen([*self.command, "--resume"], stdout=log, stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.start()


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def workers(found: Cluster) -> list[psutil.Process]:
    """The processes that run trials now."""
    import psutil

    running = []
    for node in found.worker_nodes:
        for process in psutil.Process(node.all_processes["raylet"][0].process.pid).children():
            with contextlib.suppress(psutil.Error):  # it may be gone by now
                if " ".join(process.cmdline()).startswith("ray::Drowsy"):
                    running.append(process)
    return sorted(running, key=lambda process: process.pid)


def strike(kind: str, found: Cluster, driver: Driver, rng: random.Random) -> None:
    """Kill one ``kind``, and put in its place what a cluster's manager would."""
    if kind == "driver":
        driver.kill()
    elif kind == "raylet":
        node = rng.choice(sorted(found.worker_nodes, key=lambda node: node.node_id))
        found.remove_node(node, allow_graceful=False)
        add(found, int(node.get_resource_and_label_spec().num_cpus))
    else:
        deadline = time.monotonic() + PATIENCE
        while not (running := workers(found)) and time.monotonic() < deadline:
            time.sleep(0.1)
        rng.choice(running).kill()


def search(
    file: Path, raw: dict[str, Any], kills: Sequence[tuple[int, str]], cpus: int, seed: int
) -> list[dict[str, Any]]:
    """Run the experiment to its end under ``kills`` and return the records of its trials. Raises RuntimeError."""
    file.write_text(json.dumps(raw))  # JSON is YAML
    path = Path(raw["storage"]) / raw["name"] / "search" / "trials.jsonl"
    rng = random.Random(seed)
    with cluster(RAYLETS, cpus) as found:
        driver = Driver(file, found.address)
        try:
            done, since = 0, time.monotonic()
            left = list(kills)
            while driver.process.poll() is None:
                time.sleep(0.05)
                if lines(path) > done:
                    done, since = lines(path), time.monotonic()
                if time.monotonic() - since > PATIENCE:
                    raise RuntimeError(f"no trial has finished for {PATIENCE} s; see {driver.log}")
                if left and done >= left[0][0]:
                    _, kind = left.pop(0)
                    print(f"  {done} trials done: kill a {kind}", flush=True)
                    strike(kind, found, driver, rng)
                    since = time.monotonic()
        finally:
            driver.process.kill()
    if driver.process.returncode:
        raise RuntimeError(f"the run ended with exit code {driver.process.returncode}: {driver.log.read_text()[-500:]}")
    if left:
        raise RuntimeError(f"the search was over before {len(left)} of the kills")
    return [json.loads(line) for line in path.read_text().splitlines()]


def faults(records: Sequence[dict[str, Any]], trials: int, plans: int) -> dict[str, int]:
    """Faults of a search of ``trials``, by kind. plans: number of different plans of the undisturbed search."""
    numbers = Counter(record["trial"] for record in records)
    return {
        "lost": sum(number not in numbers for number in range(trials)),
        "doubled": sum(count - 1 for count in numbers.values()),
        "failed": sum(record["error"] is not None for record in records),
        "fewer plans": max(0, plans - different(records)),
    }


def different(records: Sequence[dict[str, Any]]) -> int:
    """Number of different plans among the records."""
    return len({json.dumps(record["plan"], sort_keys=True) for record in records})


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    kills = schedule(options.kills, options.trials, options.seed)
    found = {}
    with tempfile.TemporaryDirectory(prefix="pfray-bench-") as storage:
        for name, planned in (("peace", []), ("kills", kills)):
            raw = experiment(name, options.trials, options.seconds, storage)
            began = time.monotonic()
            try:
                found[name] = search(Path(storage) / f"{name}.yaml", raw, planned, options.cpus, options.seed)
            except RuntimeError as error:
                print(f"error: {NAME}: {error}", file=sys.stderr)
                return 1
            counts = f"{len(found[name])} trials, {different(found[name])} different plans"
            print(f"{name}: {counts}, {time.monotonic() - began:.0f} s", flush=True)
    wrong = faults(found["kills"], options.trials, different(found["peace"]))
    print("killed:", ", ".join(f"{count} {kind}s" for kind, count in Counter(kind for _, kind in kills).items()))
    print(", ".join(f"{what}: {count}" for what, count in wrong.items()))
    for record in found["kills"]:
        if record["error"] is not None:
            print(f"trial {record['trial']} failed: {record['error']}")
    close(NAME, sum(wrong.values()), f"trials lost, doubled or failed, plans fewer, after {len(kills)} kills", GOAL)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(NAME, "Kill workers, raylets and the driver of a search, and count what is lost.")
    parser.add_argument("--kills", type=int, default=20, help="how many SIGKILLs")
    parser.add_argument("--trials", type=int, default=80, help="plans tried")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a trial sleeps beside its measurement")
    parser.add_argument("--cpus", type=int, default=2, help="processors of each raylet, a trial each")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed, and when")
    return parser


if __name__ == "__main__":
    sys.exit(main())
