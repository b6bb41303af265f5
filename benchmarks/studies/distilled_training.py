"""ResNet-20 on CIFAR-10 with 2.5 times fewer MACs (uniform, L1): what each setting of ``distill`` is worth.

Every case gets the same training but for ``distill``. The soft labels of cached views are made anew for each case. The
validation split is measured after the last epoch; seconds are of the processor, of all threads together, because other
work on the machine does not change those.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import DATA, ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import needed
from benchmarks.studies.workers import Record, run_all

NAME = "distilled_training"
MODEL = "resnet20"
FACTOR = 2.5
# Name of a case to its settings of ``distill``.
CASES: dict[str, dict[str, Any]] = {
    "labels alone": {},
    "soft labels": {"weight": 0.9},
    "features 0.3": {"weight": 0.9, "features": 0.3},
    "features 1": {"weight": 0.9, "features": 1.0},
    "features 3": {"weight": 0.9, "features": 3.0},
    "2 views": {"weight": 0.9, "cached_views": 2},
    "4 views": {"weight": 0.9, "cached_views": 4},
}
TRAINING = {"lr": 0.02, "batch_size": 64, "warmup_epochs": 0, "weight_decay": 5e-4}


def train(piece: Sequence[Any]) -> Record:
    """piece: (case, seed, epochs, training images or None for all)."""
    import torch

    from learners.filter_ranked import FilterRanked, Settings
    from pfray.data import cifar10
    from pfray.measure.evaluation import evaluate
    from pfray.models.resnet import resnet20
    from pfray.nn.modes import place
    from pfray.nn.weights import load_weights
    from pfray.training.loop import choose_precision, fit
    from pfray.training.settings import Distill, Training

    case, seed, epochs, images = piece
    task, device = cifar10.build(path=str(DATA / "cifar10-jpeg"), limit_train=images), torch.device("cpu")
    teacher = resnet20()
    load_weights(teacher, DATA / "weights" / f"{MODEL}.pt")
    teacher = place(teacher.eval(), device)
    algorithm = FilterRanked(teacher, task, Settings(skip=("conv1",)))
    space = algorithm.space()
    whole = space.costs({knob.name: knob.full for knob in space.knobs})["macs"]
    model = place(algorithm.compress(space.uniform({"macs": whole / FACTOR})).model, device)
    marks = [time.process_time()]
    with tempfile.TemporaryDirectory() as views:
        fit(
            model, task, Training(epochs=epochs, **TRAINING), seed=seed, precision=choose_precision(model, device),
            teacher=teacher, distill=Distill(**CASES[case]), views=Path(views),
            on_epoch=lambda epoch, loss, optimizer: marks.append(time.process_time()),
        )  # fmt: skip
    measured = evaluate(model, task, task.validation)
    seconds = [round(end - begin, 1) for begin, end in pairwise(marks)]
    return {"accuracy": measured.accuracy, "loss": measured.loss, "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(MODEL), "put the data there"):
        return SKIPPED
    pieces = [
        (case, seed, options.epochs, options.limit_train) for seed in range(options.seeds) for case in options.cases
    ]
    records = run_all(train, pieces, ROOT / "runs" / NAME / "records.jsonl", options.processes)
    print(f"\n{MODEL}, {FACTOR}x fewer MACs, {options.epochs} epochs, {options.limit_train or 'all'} training images")
    print("| distill | seed | validation, % | loss | processor seconds of each epoch |")
    print("|---|---:|---:|---:|---|")
    for (case, seed, *_), record in zip(pieces, records, strict=True):
        seconds = ", ".join(f"{each:.1f}" for each in record["seconds"])
        print(f"| {case} | {seed} | {100 * record['accuracy']:.2f} | {record['loss']:.4f} | {seconds} |")
    means = {
        case: sum(r["accuracy"] for p, r in zip(pieces, records, strict=True) if p[0] == case) / options.seeds
        for case in options.cases
    }
    if {"soft labels", "features 1"} <= means.keys():
        close(f"{NAME}_features", 100 * (means["features 1"] - means["soft labels"]), "points", "> 0")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(f"studies.{NAME}", "What each setting of distill is worth.")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="what is trained")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0, 1, ...")
    parser.add_argument("--limit-train", type=int, default=None, help="training images (default: all)")
    parser.add_argument("--processes", type=int, default=2, help="trainings at once, of one thread each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
