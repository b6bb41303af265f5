"""Test accuracy of the searched plan against the uniform one, over the seeds of one experiment, as a markdown table.

Both plans of a run get the same retraining, so their difference is the gain of the search. Spread is min .. max.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT, SKIPPED, close, is_missing

NAME = "sparse_accuracy"
GOAL = "> 0"
EXPERIMENT = ROOT / "experiments" / "resnet20_sparse.yaml"


def read_run(folder: Path) -> dict[str, Any]:
    """Seed, test accuracies in percent, trials and origin of the best plan of one finished run."""
    summary = json.loads((folder / "summary.json").read_text())
    origins = {}
    for line in (folder / "search" / "trials.jsonl").read_text().splitlines():
        trial = json.loads(line)
        origins[trial["trial"]] = trial["origin"]
    accuracies = {name: 100 * summary[name]["accuracy"] for name in ("teacher", "uniform", "compressed")}
    return {
        "seed": summary["seed"],
        **accuracies,
        "difference": accuracies["compressed"] - accuracies["uniform"],
        "trials": summary["trials"]["finished"],
        "origin": origins[summary["trials"]["best"]],
    }


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The runs as a markdown table, a row each, and below them the means and the spreads (min .. max)."""
    columns = ("teacher", "uniform", "compressed", "difference")
    rows = [
        [str(run["seed"]), *(_number(run[name], name) for name in columns), str(run["trials"]), run["origin"]]
        for run in runs
    ]
    values = {name: [run[name] for run in runs] for name in columns}
    rows.append(["mean", *(_number(fmean(values[name]), name) for name in columns), "", ""])
    spread = [f"{_number(min(values[name]), name)} .. {_number(max(values[name]), name)}" for name in columns]
    rows.append(["min .. max", *spread, "", ""])
    header = ["seed", "teacher, %", "uniform, %", "searched, %", "difference, points", "trials", "best plan from"]
    lines = [header, ["---", *["---:"] * 5, "---"], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run_seeds(experiment: Path, seeds: Sequence[int], storage: Path, overrides: Sequence[str]) -> list[Path]:
    """Make the run of every seed, finished ones left alone, others continued. Raises CalledProcessError."""
    folders = []
    for seed in seeds:
        name = f"{experiment.stem}_seed{seed}"
        folders.append(storage / name)
        if not (folders[-1] / "summary.json").exists():
            settings = [f"seed={seed}", f"name={name}", f"storage={storage}", *overrides]
            command = [sys.executable, "-m", "pfray.run", str(experiment), *settings, "--resume"]
            # In the root, because the experiment's paths are relative to it.
            subprocess.run(command, cwd=ROOT, check=True)
    return folders


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    storage = options.storage.resolve()
    folders = options.folders or [storage / f"{options.experiment.stem}_seed{seed}" for seed in options.seeds]
    if options.run:
        try:
            folders = run_seeds(options.experiment.resolve(), options.seeds, storage, options.set)
        except subprocess.CalledProcessError as error:
            print(f"error: {NAME}: {error}", file=sys.stderr)
            return 1
    summaries = [folder / "summary.json" for folder in folders]
    if is_missing(NAME, summaries, f"make the runs with python -m benchmarks.studies.{NAME} --run"):
        return SKIPPED
    runs = [read_run(folder) for folder in folders]
    print(table(runs))
    close(NAME, fmean(run["difference"] for run in runs), "points of test accuracy, searched minus uniform", GOAL)
    return 0


def _number(value: float, column: str) -> str:
    return f"{value:+.2f}" if column == "difference" else f"{value:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(f"studies.{NAME}", "Compare searched and uniform plans over seeds, from finished run folders.")
    parser.add_argument("folders", nargs="*", type=Path, help="finished run folders; without them those of --seeds")
    parser.add_argument("--run", action="store_true", help="first make the runs of --seeds that are not finished")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the runs")
    parser.add_argument("--experiment", type=Path, default=EXPERIMENT, help="the experiment file")
    parser.add_argument("--storage", type=Path, default=ROOT / "runs", help="folder of the run folders")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="overrides of the experiment file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
