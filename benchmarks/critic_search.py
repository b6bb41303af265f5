"""Wall time of a whole search by ``critic`` on the command line: ResNet-56 on CIFAR-10, 90 % sparsity, 200 trials."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parser import make_parser
from benchmarks.result import DATA, SKIPPED, close, is_missing
from benchmarks.search_overhead import run_command
from benchmarks.sparse_resnet import SPARSITY, needed

NAME = "critic_search"
GOAL = "<= 10"


def experiment(model: str, trials: int, storage: str) -> dict[str, Any]:
    """pfray's own settings, but for what comes after the search."""
    return {
        "name": NAME,
        "model": {"name": model, "weights": str(DATA / "weights" / f"{model}.pt")},
        "data": {"name": "cifar10", "path": str(DATA / "cifar10-jpeg")},
        "learner": "weight_sparse",
        "target": {"sparsity": SPARSITY},
        "search": {"name": "critic", "trials": trials},
        "finetune": {"epochs": 0},
        "export": {"tflite": False},
        "storage": storage,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(options.model), "put the data there"):
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="pfray-bench-") as storage:
        file = Path(storage) / "experiment.yaml"
        file.write_text(json.dumps(experiment(options.model, options.trials, storage)))  # JSON is YAML
        try:
            run_command(file)
        except subprocess.CalledProcessError as error:
            print(f"error: {NAME}: {error}", file=sys.stderr)
            return 1
        summary = json.loads((Path(storage) / NAME / "summary.json").read_text())
    seconds, choice = summary["seconds"], summary["choice"]
    searching = seconds["search"] + seconds.get("rescore", 0.0)
    print(
        f"\nsearch {seconds['search']:.0f} s, the best plans again on all validation images "
        f"{seconds.get('rescore', 0.0):.0f} s; {60 * options.trials / seconds['search']:.0f} candidates a minute"
    )
    print(
        f"chosen: trial {choice['trial']} ({choice['origin']}); test accuracy without retraining "
        f"{100 * summary['compressed']['accuracy']:.2f} %, allocate {100 * summary['allocate']['accuracy']:.2f} %, "
        f"uniform {100 * summary['uniform']['accuracy']:.2f} %"
    )
    close(NAME, searching / 60, f"minutes for {options.trials} trials of {options.model}", GOAL)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(NAME, "Time a whole search of critic through the command line.")
    parser.add_argument("--model", default="resnet56", choices=("resnet20", "resnet56"), help="the network")
    parser.add_argument("--trials", type=int, default=200, help="trials of the search")
    return parser


if __name__ == "__main__":
    sys.exit(main())
