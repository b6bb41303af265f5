"""Group fine-tuning (Wu et al. 2018, section 3.1.1): ResNet-20 on CIFAR-10 with half the MACs.

The uniform plan by LASSO and least squares is applied to all groups at once, or to some at a time with epochs of
training in between. Both get the same total number of epochs, each on the same share of the training images. The test
split is read once, after the last epoch.
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
from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import needed
from benchmarks.studies import searching
from benchmarks.studies.dcp_steps import MODEL, SHARE, SKIP
from benchmarks.studies.workers import Record, run_all

NAME = "group_finetuning"
TRAINING = {"lr": 0.02, "batch_size": 128, "warmup_epochs": 0}


def retrain(piece: Sequence[Any]) -> Record:
    """piece: (group_size, epochs in all, training images, seed). Every stage as a run does it."""
    from pfray.measure.evaluation import evaluate
    from pfray.training.loop import choose_precision, fit
    from pfray.training.settings import Training

    size, epochs, images, seed = piece
    work = searching.job_with(MODEL, "channel_pruned", skip=SKIP, group_size=size)
    algorithm = work.bind()
    space = algorithm.space()
    whole = space.costs({knob.name: knob.full for knob in space.knobs})["macs"]
    plan = space.uniform({"macs": SHARE * whole})
    milder = [(stage.plan, stage.epochs) for stage in algorithm.stages(plan)]
    last = epochs - sum(own for _, own in milder)
    if last < 1:
        raise ValueError(f"{epochs} epochs are not enough for {len(milder)} stages and the last one")
    part = replace(work.task, train=work.task.train.head(images))
    started = time.perf_counter()
    model: Any = None
    pruned = []
    for number, (stage, own) in enumerate([*milder, (plan, last)]):
        model = algorithm.finish(stage, model).model
        pruned.append(evaluate(model, work.task, work.task.validation).accuracy)
        training = Training(epochs=own, **TRAINING)
        precision = choose_precision(model, next(model.parameters()).device)
        fit(model, part, training, seed=seed + number, precision=precision)
    return {
        "macs": space.costs(plan)["macs"] / whole,
        "epochs": [*(own for _, own in milder), last],
        "pruned": pruned,
        "validation": evaluate(model, work.task, work.task.validation).accuracy,
        "test": evaluate(model, work.task, work.task.test).accuracy,
        "seconds": time.perf_counter() - started,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(MODEL), "put the data there"):
        return SKIPPED
    wanted = [(size, seed) for seed in range(options.seeds) for size in (0, options.group_size)]
    pieces = [[size, options.epochs, options.train_images, seed] for size, seed in wanted]
    records = run_all(retrain, pieces, ROOT / "runs" / NAME / "records.jsonl", options.processes)
    print(f"\n{MODEL}, uniform plan by LASSO, {options.epochs} epochs of {options.train_images:,} images in all")
    print("| MACs | groups at a time | seed | epochs | after each pruning, % | validation, % | test, % |")
    print("|---|---|---:|---|---|---:|---:|")
    for (size, seed), record in zip(wanted, records, strict=True):
        steps = " + ".join(map(str, record["epochs"]))
        pruned = ", ".join(f"{100 * each:.2f}" for each in record["pruned"])
        accuracies = f"{100 * record['validation']:.2f} | {100 * record['test']:.2f}"
        print(f"| {record['macs']:.3f}x | {size or 'all'} | {seed} | {steps} | {pruned} | {accuracies} |")
    # All at once and in groups by turns.
    once, grouped = (sum(record["test"] for record in records[first::2]) / options.seeds for first in (0, 1))
    close(NAME, 100 * (grouped - once), "points by group fine-tuning", "> 0")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        f"studies.{NAME}",
        "Accuracy after channel pruning with and without group fine-tuning, by the same training in all.",
    )
    parser.add_argument("--group-size", type=int, default=3, help="groups of channels that are pruned at a time")
    parser.add_argument("--epochs", type=int, default=6, help="in all, the stages' own among them")
    parser.add_argument("--train-images", type=int, default=20_000, help="training images of an epoch")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, help="trainings at once, of one thread each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
