"""Overhead of a search over its trials: Ray, the searcher and the bookkeeping, in a real run of the command line.

The run: ResNet-20 on CIFAR-10, 90 % sparsity, 60 random plans without fine-tuning, each measured on 1,000 validation
images after batch-norm re-estimation on the default number of training images; no retraining and no .tflite.

Notation: trial i reports ``seconds`` s_i, the wall time in its ``step``, and ``finished_at`` e_i; p trials run at once.

    overhead = (max e_i - min(e_i - s_i)) / (sum s_i / p)

Included: everything between two trials of a worker (Tune's event loop, the searcher, ``trials.jsonl``, the actor's
reset), workers that start later than the first, and the end, when the last trials leave some workers idle. Excluded:
the start of the first worker, which the second figure includes, and work in parallel with a running trial, which slows
it down and so increases s_i. To show that effect, the median of s_i is printed next to the time of the same computation
in a process without Ray. The difference also includes contention between the p trials (caches, memory), which Ray does
not cause.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parser import make_parser
from benchmarks.result import DATA, ROOT, SKIPPED, close, is_missing

NAME = "search_overhead"
GOAL = "<= 1.25"
START_GOAL = "<= 20"
ALONE_REPEATS = 9


def overhead(trials: Sequence[Mapping[str, Any]], parallel: int) -> float:
    """Wall time from the first trial's start to the last one's end, over (sum of trial seconds / ``parallel``).

    trials: records of ``trials.jsonl``; those without ``seconds`` (their worker died) count as overhead alone.
    """
    timed = [trial for trial in trials if trial["seconds"] is not None]
    wall = max(trial["finished_at"] for trial in timed) - first_start(timed)
    return wall / (sum(trial["seconds"] for trial in timed) / parallel)


def first_start(trials: Sequence[Mapping[str, Any]]) -> float:
    """The wall-clock second at which the first trial began to compute."""
    return min(trial["finished_at"] - trial["seconds"] for trial in trials if trial["seconds"] is not None)


def start_breakdown(began: float, seen: Mapping[str, float], first: float) -> list[tuple[str, float]]:
    """(stage, seconds) from the command's start to the first trial's start, in order.

    seen: when the lines ``[load] started`` and so on appeared, by stage.
    """
    marks = [
        ("python and imports", seen["load"]),
        ("load: data, model, plans", seen["start ray"]),
        ("start ray, teacher", seen["search"]),
        ("start the first worker", first),
    ]
    return [(what, end - start) for (what, end), start in zip(marks, [began, *(end for _, end in marks)], strict=False)]


def experiment(options: argparse.Namespace, storage: str) -> dict[str, Any]:
    return {
        "name": NAME,
        "model": {"name": "resnet20", "weights": str(options.weights.resolve())},
        "data": {"name": "cifar10", "path": str(options.data.resolve())},
        "learner": "weight_sparse",
        "target": {"sparsity": 0.9},
        "search": {"name": "random", "trials": options.trials, "validation_images": options.validation_images},
        "finetune": {"epochs": 0},
        "export": {"tflite": False},
        "resources": {"parallel": options.parallel},
        "storage": storage,
    }


def run_command(file: Path) -> tuple[float, dict[str, float], list[str]]:
    """(the command's start, when each stage's first line appeared, all lines). Raises CalledProcessError."""
    command = [sys.executable, "-u", "-m", "pfray.run", str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    seen: dict[str, float] = {}
    lines: list[str] = []
    began = time.time()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[") and line.rstrip().endswith("] started"):
                seen.setdefault(line[1 : line.index("]")], time.time())
            lines.append(line.rstrip())
            print(f"  {line}", end="", flush=True)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return began, seen, lines


def seconds_alone(raw: dict[str, Any], plan: dict[str, Any]) -> float:
    """Median seconds of what a trial of ``plan`` computes, in this process, on as many threads as a trial has."""
    import torch

    from pfray.config import schema
    from pfray.learner.scoring import Scorer
    from pfray.reporting.observers import Observers
    from pfray.workflow import setup

    settings = schema.Experiment.model_validate(raw)
    start = setup.load(settings, Observers())
    torch.set_num_threads(settings.resources.trial.cpu)
    spec = setup.trial_spec(settings, start, start.model)
    scorer = Scorer(spec.context, spec.recipe, spec.scoring, torch.device("cpu"))
    times = []
    for _ in range(1 + ALONE_REPEATS):
        began = time.perf_counter()
        scorer.score(plan)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, [options.data, options.weights], "give --data and --weights"):
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="pfray-bench-") as storage:
        raw = experiment(options, storage)
        file = Path(storage) / "experiment.yaml"
        file.write_text(json.dumps(raw))  # JSON is YAML
        try:
            began, seen, lines = run_command(file)
        except subprocess.CalledProcessError as error:
            print(f"error: {NAME}: {error}", file=sys.stderr)
            return 1
        text = (Path(storage) / NAME / "search" / "trials.jsonl").read_text()
    trials = [json.loads(line) for line in text.splitlines()]
    failed = [trial["error"] for trial in trials if trial["error"]]
    if failed:
        print(f"error: {NAME}: {len(failed)} of {len(trials)} trials failed: {failed[0]}", file=sys.stderr)
        return 1
    seconds, first = [trial["seconds"] for trial in trials], first_start(trials)
    print(f"\n{len(trials)} trials, {options.parallel} at once, 1-minute load {os.getloadavg()[0]:.1f}")
    print(f"one trial: median {median(seconds):.3f} s, {min(seconds):.3f} .. {max(seconds):.3f} s")
    if options.alone:
        print(f"the same computation alone, without Ray: median {seconds_alone(raw, trials[0]['plan']):.3f} s")
    cold = any("decoding" in line for line in lines)
    print(f"from the command to the first trial ({'cold: the images were decoded first' if cold else 'warm cache'}):")
    for what, spent in start_breakdown(began, seen, first):
        print(f"  {spent:6.2f} s  {what}")
    close(f"{NAME}_start", first - began, "seconds from the command to the first trial", START_GOAL)
    close(NAME, overhead(trials, options.parallel), "wall time / (trial seconds / parallel trials)", GOAL)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        NAME,
        "Measure what a search costs beside its trials, and how long it takes until the first one.",
    )
    parser.add_argument("--data", type=Path, default=DATA / "cifar10-jpeg", help="folder of CIFAR-10")
    parser.add_argument("--weights", type=Path, default=DATA / "weights" / "resnet20.pt", help="ResNet-20's state dict")
    parser.add_argument("--trials", type=int, default=60, help="plans tried")
    parser.add_argument("--validation-images", type=int, default=1000, help="images that a trial is measured on")
    parser.add_argument("--parallel", type=int, default=min(2, os.cpu_count() or 1), help="trials at once, a core each")
    parser.add_argument("--no-alone", dest="alone", action="store_false", help="do not time a trial without Ray")
    return parser


if __name__ == "__main__":
    sys.exit(main())
