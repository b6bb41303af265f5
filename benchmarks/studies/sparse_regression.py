"""Gain of layer-wise regression for sparse candidates: ResNet-20 on CIFAR-10 with 90 % sparsity.

Plans of that cost are pruned in one shot and scored as in a trial without fine-tuning, on all validation images: with
and without steps of regressing each layer's remaining weights on its former outputs (20 in PocketFlow's roll-outs).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import job, needed
from benchmarks.studies.reward_fidelity import CENTERS, plans
from benchmarks.studies.workers import Record, run_all

NAME = "sparse_regression"


def score(piece: Sequence[int]) -> Record:
    """piece: (number of the plan, regression steps)."""
    from learners.weight_sparse import Settings

    number, steps = piece
    work = job()
    work = replace(work, recipe=replace(work.recipe, settings=Settings(regression_steps=steps)))
    scorer = work.scorer(validation_images=None)
    plan = plans(number + 1)[number]
    scorer.score(dict.fromkeys(plan, 0.5))  # what is computed once for all plans
    started = time.perf_counter()
    measured = scorer.score(plan)["measurement"]
    return {
        "accuracy": measured["accuracy"],
        "agreement": measured["agreement"],
        "seconds": time.perf_counter() - started,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed("resnet20"), "put the data there"):
        return SKIPPED
    pieces = [[number, steps] for number in range(options.plans) for steps in options.steps]
    records = run_all(score, pieces, ROOT / "runs" / NAME / "records.jsonl", options.processes)
    found = {tuple(piece): record for piece, record in zip(pieces, records, strict=True)}
    print("\nAccuracy of a candidate on the validation split, % (KL divergence from the teacher; seconds)")
    print(f"| plan | {' | '.join(f'{steps} steps' for steps in options.steps)} |")
    print("|---|" + "---|" * len(options.steps))
    for number in range(options.plans):
        cells = []
        for steps in options.steps:
            record = found[number, steps]
            cells.append(f"{100 * record['accuracy']:.2f} ({-record['agreement']:.3f}; {record['seconds']:.1f})")
        print(f"| around {CENTERS[number % len(CENTERS)]} | {' | '.join(cells)} |")
    first, last = options.steps[0], options.steps[-1]
    gains = [found[n, last]["accuracy"] - found[n, first]["accuracy"] for n in range(options.plans)]
    close(NAME, 100 * sum(gains) / len(gains), f"points of accuracy by {last} steps, mean of the plans", "> 0")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(f"studies.{NAME}", "Scores of sparse candidates with and without layer-wise regression.")
    parser.add_argument("--plans", type=int, default=6)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 20], help="regression steps")
    parser.add_argument("--processes", type=int, default=2, help="plans at once, of one thread each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
