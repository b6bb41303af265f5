"""Rank correlation of a trial's score with the accuracy after retraining.

    python -m benchmarks.studies.reward_fidelity
    python -m benchmarks.studies.reward_fidelity --plans 12 --train-images 10000

Plans of one cost (ResNet-20 on CIFAR-10, 90 % sparsity), drawn around the uniform, the heuristic and the allocated
plan, are scored as in a trial, at once and after a few steps of training that end at a learning rate of 0, then all
retrained in the same way. The second command is a short form. The accuracy is the last epoch's on the test split,
which is the user's result.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import LIMITS, job, needed, plans_without_search, space
from benchmarks.studies.workers import Record, run_all

NAME = "reward_fidelity"
GOAL = ">= 0.8"
# Between the name of a score and its steps.
AFTER = ", after "
# Around which plan each is drawn, in turn, and how far, as a share of a knob's range.
CENTERS = ("uniform", "heuristic", "allocate")
SPREAD = 0.15
STEPS = (10, 30, 100)


def score_and_retrain(piece: list[Any]) -> Record:
    """piece: (number of the plan, training images, epochs, steps of trials). Every score of the plan, the seconds of
    scoring it after these steps, and its retrained accuracy."""
    from pfray.measure.evaluation import BATCH, answers_of, evaluate, judge
    from pfray.training.batch_norm import reestimate_batch_norm
    from pfray.training.loop import fit

    number, images, epochs, trained = piece
    work, images_used = job(), {"validation_images": 1000, "bn_images": 1000}
    plan = plans(number + 1)[number]
    scorer = work.scorer(**images_used)
    task, precision = work.task, scorer.precision
    soft_labels = list(answers_of(scorer.teacher, task, task.validation, precision))
    algorithm = work.recipe.candidate(plan).bind(scorer.teacher, task)
    model = algorithm.compress(plan).model
    reestimate_batch_norm(model, task, images_used["bn_images"], precision)
    answers = list(answers_of(model, task, task.validation, precision))
    record: Record = {}
    for count in (500, 1000, 5000):
        batches = count // BATCH
        found = judge(model, task, answers[:batches], soft_labels[:batches])
        record[f"accuracy, {count} images"] = found.accuracy
        record[f"agreement, {count} images"] = found.agreement
    for steps in trained:
        started = time.perf_counter()
        found = work.scorer(**images_used, finetune_steps=steps).score(plan)["measurement"]
        record[f"seconds of {steps} steps"] = time.perf_counter() - started
        for name in ("accuracy", "agreement"):
            record[f"{name}, 1000 images{AFTER}{steps} steps"] = found[name]

    part = replace(task, train=task.train.head(images))
    training = work.recipe.training.model_copy(update={"epochs": epochs})
    steps = epochs * part.train.steps(training.batch_size)
    student = algorithm.compress(plan, steps)
    fit(student.model, part, training, seed=work.context.seed, precision=precision, hook=student.hook)
    record["retrained"] = evaluate(student.model, task, task.test, precision=precision).accuracy
    return record


def plans(count: int) -> list[dict[str, float]]:
    """``count`` plans on the target, a third of them around each of the three that need no search."""
    import numpy as np

    work = job()
    whole = space(work)
    centers = [plans_without_search(work)[name] for name in CENTERS]
    random = np.random.default_rng(0)
    found = []
    for number in range(count):
        positions = whole.encode(centers[number % 3]) + SPREAD * random.standard_normal(len(whole))
        found.append(whole.fit_to_target(whole.decode(positions), LIMITS))
    return found


def correlations(records: Sequence[Record]) -> dict[str, float]:
    """Spearman's rank correlation of each score with the retrained accuracy, the best first."""
    from scipy.stats import spearmanr

    names = [name for name in records[0] if name.startswith(("accuracy", "agreement"))]
    retrained = [record["retrained"] for record in records]
    found = {name: float(spearmanr([record[name] for record in records], retrained).statistic) for name in names}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed("resnet20"), "put the data there"):
        return SKIPPED
    pieces = [[number, options.train_images, options.epochs, options.steps] for number in range(options.plans)]
    records = run_all(score_and_retrain, pieces, options.folder / "plans.jsonl", options.processes)
    retrained = [record["retrained"] for record in records]
    print(f"\n{len(records)} plans, retrained to {100 * min(retrained):.2f} .. {100 * max(retrained):.2f} %")
    print("| score of a trial | Spearman correlation with the retrained accuracy |\n| --- | ---: |")
    found = correlations(records)
    for name, value in found.items():
        print(f"| {name} | {value:.2f} |")
    for index, center in enumerate(CENTERS):
        near = [record for record in records if record["piece"][0] % len(CENTERS) == index]
        if len(near) > 2:
            found_near = ", ".join(f"{name} {value:.2f}" for name, value in correlations(near).items())
            print(f"only the {len(near)} plans around {center}: {found_near}")
    for steps in (0, *options.steps):
        kind = f"{AFTER}{steps} steps" if steps else ""
        own = (name for name in found if (name.endswith(kind) if steps else AFTER not in name))
        best = max(own, key=lambda name: found[name])
        seconds = f", {fmean(record[f'seconds of {steps} steps'] for record in records):.1f} s" if steps else ""
        what = f"Spearman correlation of {best} with the retrained accuracy{seconds}"
        close(f"{NAME}{kind or ', at once'}", found[best], what, GOAL)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        f"studies.{NAME}",
        "Rank correlation between the scores of trials and the accuracy after retraining.",
    )
    parser.add_argument("--plans", type=int, default=30, help="plans of one cost")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each retraining")
    parser.add_argument("--steps", type=int, nargs="*", default=list(STEPS), help="of a trial, a score for each")
    parser.add_argument("--train-images", type=int, default=45_000, help="training images of a retraining")
    parser.add_argument("--processes", type=int, default=2, help="plans at once, a core each")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / NAME, help="where finished plans are kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
