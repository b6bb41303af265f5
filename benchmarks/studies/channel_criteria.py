"""Which channels to keep, by the length of the training that follows.

ResNet-20 on CIFAR-10 with 2.5 times fewer MACs, the same number of channels everywhere, chosen by LASSO, by L1 or by
Taylor, the last two with and without least squares. Each is trained for several lengths; every length has its own
schedule, down to a learning rate of 0. The test split is read once, after the last epoch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT, SKIPPED, is_missing
from benchmarks.sparse_resnet import needed
from benchmarks.studies import searching
from benchmarks.studies.workers import Record, run_all

NAME = "channel_criteria"
MODEL = "resnet20"
FACTOR = 2.5
# The residual stream stays as wide as it is, as in the papers' tables.
SKIP = ("conv1",)
DISTILL = {"weight": 0.9, "temperature": 4.0}
TRAINING = {"lr": 0.02, "batch_size": 128, "warmup_epochs": 0}
# Criterion, and whether the layers that read the channels are reconstructed by least squares.
METHODS = {
    "LASSO, least squares": ("lasso", True),
    "L1, least squares": ("l1", True),
    "L1": ("l1", False),
    "Taylor, least squares": ("taylor", True),
    "Taylor": ("taylor", False),
}


def prune_and_train(piece: Sequence[Any]) -> Record:
    """piece: (method, training images, epochs, seed, whether the teacher's soft labels are learned)."""
    from pfray.measure.evaluation import evaluate
    from pfray.nn.modes import place
    from pfray.training.loop import choose_precision, fit
    from pfray.training.settings import Distill, Training

    method, images, epochs, seed, distilled = piece
    criterion, reconstruct = METHODS[method]
    work = searching.job_with(MODEL, "channel_pruned", skip=SKIP, criterion=criterion, reconstruct=reconstruct)
    algorithm = work.bind()
    space = algorithm.space()
    whole = space.costs({knob.name: knob.full for knob in space.knobs})["macs"]
    plan = space.uniform({"macs": whole / FACTOR})
    model = place(algorithm.finish(plan).model, algorithm.device)
    started = time.perf_counter()
    part = replace(work.task, train=work.task.train.head(images))
    training = Training(epochs=epochs, **TRAINING)
    if epochs:
        fit(
            model,
            part,
            training,
            seed=seed,
            precision=choose_precision(model, algorithm.device),
            teacher=place(work.teacher, algorithm.device) if distilled else None,
            distill=Distill(**DISTILL) if distilled else None,
        )
    return {
        "steps": epochs * part.train.steps(training.batch_size),
        "validation": evaluate(model, work.task, work.task.validation).accuracy,
        "test": evaluate(model, work.task, work.task.test).accuracy,
        "seconds": time.perf_counter() - started,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(MODEL), "put the data there"):
        return SKIPPED
    wanted = [(epochs, method) for epochs in options.epochs for method in options.methods]
    pieces = [[method, options.train_images, epochs, options.seed, options.distilled] for epochs, method in wanted]
    records = run_all(prune_and_train, pieces, ROOT / "runs" / NAME / "records.jsonl", options.processes)
    found = dict(zip(wanted, records, strict=True))
    teacher = searching.teacher_accuracy(MODEL)
    steps = [found[epochs, options.methods[0]]["steps"] for epochs in options.epochs]
    print(f"\n{MODEL}, {FACTOR}x fewer MACs, teacher {100 * teacher:.2f} %; test, %, after so many steps of training")
    print(f"| | {' | '.join(map(str, steps))} |\n|---|{'---|' * len(steps)}")
    for method in options.methods:
        cells = [f"{100 * found[epochs, method]['test']:.2f}" for epochs in options.epochs]
        print(f"| {method} | {' | '.join(cells)} |")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(f"studies.{NAME}", "Which channels to keep, by the length of the training that follows.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--epochs", type=int, nargs="+", default=[0, 1, 2, 4, 8], help="lengths of the training")
    parser.add_argument("--train-images", type=int, default=10_000, help="images of an epoch")
    parser.add_argument("--distilled", action="store_true", help="learn the teacher's soft labels too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="trainings at once, of one thread each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
