"""Steps that discrimination-aware channel pruning needs: ResNet-20 on CIFAR-10 with half the MACs.

The uniform plan is finished as in a run, with the learner's default steps and with multiples of them, for the tuning of
each stage and after each choice. Baselines: L1 magnitudes, and LASSO with least squares. PocketFlow's own numbers are
10,000 and 500. The test split is read once, directly after pruning and without training.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import needed
from benchmarks.studies import searching
from benchmarks.studies.workers import Record, run_all

NAME = "dcp_steps"
MODEL = "resnet20"
# The residual stream stays as wide as it is, as in the papers' tables.
SKIP = ("conv1",)
SHARE = 0.5
STEPS, INNER_STEPS = 100, 2


def prune(piece: Sequence[Any]) -> Record:
    """piece: (learner, settings, seed). The settings beside ``skip``; the accuracies right after pruning."""
    import torch

    from pfray.measure.evaluation import evaluate

    name, settings, seed = piece
    work = searching.job_with(MODEL, name, skip=SKIP, **settings)
    algorithm = work.bind()
    space = algorithm.space()
    whole = space.costs({knob.name: knob.full for knob in space.knobs})["macs"]
    plan = space.uniform({"macs": SHARE * whole})
    torch.manual_seed(seed)
    started = time.perf_counter()
    model = algorithm.finish(plan).model
    seconds = time.perf_counter() - started
    return {
        "macs": space.costs(plan)["macs"] / whole,
        "validation": evaluate(model, work.task, work.task.validation).accuracy,
        "test": evaluate(model, work.task, work.task.test).accuracy,
        "seconds": seconds,
    }


def pieces(times: Sequence[int], seed: int) -> dict[str, list[Any]]:
    """By the table's name of a row, its piece."""
    rows = {"L1": ["filter_ranked", {}, seed]}
    for factor in times:
        steps, inner = factor * STEPS, factor * INNER_STEPS
        rows[f"DCP, {steps} and {inner} steps"] = ["dis_chn_pruned", {"steps": steps, "inner_steps": inner}, seed]
    return {**rows, "LASSO": ["channel_pruned", {}, seed]}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(MODEL), "put the data there"):
        return SKIPPED
    rows = pieces(options.times, options.seed)
    found = run_all(prune, list(rows.values()), ROOT / "runs" / NAME / "records.jsonl", options.processes)
    records = dict(zip(rows, found, strict=True))
    print(f"\n{MODEL}, uniform plan, no training after pruning")
    print("| MACs | method | validation, % | test, % | finish, s |\n|---|---|---:|---:|---:|")
    for name, record in records.items():
        accuracies = f"{100 * record['validation']:.2f} | {100 * record['test']:.2f}"
        print(f"| {record['macs']:.3f}x | {name} | {accuracies} | {record['seconds']:.0f} |")
    dcp = [record["test"] for name, record in records.items() if name.startswith("DCP")]
    close(NAME, 100 * (dcp[-1] - dcp[0]), "points by more steps", ">= 0")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(f"studies.{NAME}", "Accuracy right after discrimination-aware channel pruning by its steps.")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10], help="multiples of the learner's own steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="pieces at once, of one thread each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
