"""ResNet-20 and ResNet-56 on CIFAR-10 with 8, 4, 3 and 2 bits per weight: uniform, allocated and searched bits.

Reports the accuracy on the test split directly after quantization, with re-estimated batch norms, and after the same
training for every plan. The test split is read for the chosen plans only; the search scores candidates on validation
images. With --fold, batch norms are folded before quantization, and the training has a tenth of the learning rate.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import needed
from benchmarks.studies import searching
from benchmarks.studies.workers import Record, run_all

NAME = "quant_accuracy"
FOLDER = ROOT / "runs" / NAME
LEARNERS = ("uniform_quant", "non_uniform_quant")
METHODS = ("uniform", "allocate", "tpe", "critic")
SEARCHED = ("tpe", "critic")
BITS = (8, 4, 3, 2)
# Training images that batch-norm statistics are put right on, where that helps on the validation split.
BN_IMAGES = 5000
TRAINING = {"batch_size": 128, "warmup_epochs": 0}
LR = 0.02


def plan_bits(piece: Sequence[Any]) -> Record:
    """piece: (model, learner, settings, bits, method, trials, seed). A plan, its file and accuracy without training."""
    from pfray.export.packed import file
    from pfray.measure.evaluation import evaluate
    from pfray.nn.modes import place
    from pfray.training.batch_norm import reestimate_batch_norm

    model, name, settings, bits, method, trials, seed = piece
    work = searching.job_with(model, name, **settings)
    started = time.perf_counter()
    plan = _plan(method, work, {"bits": bits}, trials, seed)
    seconds = time.perf_counter() - started
    algorithm = work.bind()
    quantized = algorithm.finish(plan).model if algorithm.has_finish else algorithm.compress(plan).model
    candidates = [place(quantized, "cpu"), copy.deepcopy(quantized)]
    reestimate_batch_norm(candidates[1], work.task, BN_IMAGES, "float32")
    best = max(candidates, key=lambda model: evaluate(model, work.task, work.task.validation).accuracy)
    test = evaluate(best, work.task, work.task.test).accuracy
    with tempfile.TemporaryDirectory() as folder:
        size = file.save(Path(folder) / "model.packed", quantized.state_dict())
    return {"plan": plan, "test": test, "seconds": seconds, "reestimated": best is candidates[1], "bytes": size}


def retrain(piece: Sequence[Any]) -> Record:
    """piece: (model, learner, settings, seed, epochs, plan). Prints the loss after each epoch."""
    import torch

    from pfray.learner.build import compress_candidate
    from pfray.measure.evaluation import evaluate
    from pfray.training.loop import choose_precision, fit
    from pfray.training.settings import Training

    model, name, settings, seed, epochs, plan = piece
    work = searching.job_with(model, name, **settings)
    training = Training(epochs=epochs, lr=LR / 10 if settings["fold"] else LR, **TRAINING)
    steps = epochs * work.task.train.steps(training.batch_size)
    device, started = torch.device("cpu"), time.time()
    start = compress_candidate(work.recipe.candidate(plan), work.context, device, steps)
    quantized, hook = start.model, start.hook

    def show(epoch: int, loss: float, optimizer: Any) -> None:
        print(f"  {model}, {name}: epoch {epoch}, loss {loss:.4f}, {time.time() - started:.0f} s", flush=True)

    precision = choose_precision(quantized, device)
    fit(quantized, work.task, training, seed=seed, precision=precision, hook=hook, on_epoch=show)
    return {"test": evaluate(quantized, work.task, work.task.test).accuracy, "seconds": time.time() - started}


def _plan(method: str, work: searching.Job, limits: Mapping[str, float], trials: int, seed: int) -> dict[str, float]:
    from pfray.config.registry import find_class
    from pfray.search.base import PlanSearcher
    from pfray.workflow import baselines

    algorithm = work.bind()
    space = algorithm.space()
    known = baselines.plans_without_search(space, limits, algorithm.error_curves())
    if method in known:
        return known[method]
    first = baselines.first_plans(known, find_class("search", method, PlanSearcher))
    return searching.searched_plan(method, work, space, limits, first, trials, seed)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, [path for model in options.models for path in needed(model)], "put the data there"):
        return SKIPPED
    keys = [
        (model, learner, bits, method)
        for model in options.models
        for learner in options.learners
        for bits in options.bits
        for method in options.methods
        # With the most bits for all there is nothing to choose.
        if method == "uniform" or bits < max(BITS)
    ]
    settings: dict[str, Any] = {"fold": options.fold}
    if options.buckets is not None:
        settings["buckets"] = options.buckets
    settings["bias_correction"] = options.rounding == "adaround"
    own = {"uniform_quant": {**settings, "rounding": options.rounding}}
    pieces = [[m, n, own.get(n, settings), bits, method, options.trials, options.seed] for m, n, bits, method in keys]
    plans = dict(zip(keys, run_all(plan_bits, pieces, FOLDER / "plans.jsonl", options.processes), strict=True))
    trained: dict[tuple[Any, ...], Record] = {}
    if options.epochs:
        pieces = [[key[0], key[1], settings, options.seed, options.epochs, plans[key]["plan"]] for key in keys]
        records = run_all(retrain, pieces, FOLDER / "trained.jsonl", options.processes)
        trained = dict(zip(keys, records, strict=True))
    teachers = {model: searching.teacher_accuracy(model) for model in options.models}
    print(f"\n{settings}; test split; {options.trials} trials, {options.epochs} epochs")
    print("| model | learner | bits | plan | packed bytes | right after quantizing, % | trained, % | lost, points |")
    print("|---|---|---:|---|---:|---:|---:|---:|")
    for key, record in plans.items():
        last = trained.get(key, record)["test"]
        after = f"{100 * last:.2f}" if trained else ""
        lost = f"{100 * (teachers[key[0]] - last):.2f}"
        right_after = f"{record['bytes']:,} | {100 * record['test']:.2f}"
        print(f"| {' | '.join(map(str, key))} | {right_after} | {after} | {lost} |")
    _close(plans, teachers)
    return 0


def _close(plans: Mapping[tuple[Any, ...], Record], teachers: Mapping[str, float]) -> None:
    """The goals that the pieces done allow to judge, right after quantizing, in points of test accuracy."""
    test = {key: 100 * record["test"] for key, record in plans.items()}
    for (model, learner, bits, method), found in test.items():
        name = f"{NAME}_{model}_{learner}_{bits}"
        if bits == 8:
            close(name, 100 * teachers[model] - found, "points lost", "<= 0.1")
        searched = [test[model, learner, bits, s] for s in SEARCHED if (model, learner, bits, s) in test]
        if bits == 3 and method == "uniform" and searched:
            close(name, max(searched) - found, "points, searched over uniform bits", ">= 2")
        if bits in (2, 3) and learner == LEARNERS[1] and (model, LEARNERS[0], bits, method) in test:
            other = test[model, LEARNERS[0], bits, method]
            close(f"{name}_{method}", found - other, "points, codebooks over even levels", "> 0")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(f"studies.{NAME}", "Accuracy with few bits a weight, by how the bits are chosen.")
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"], choices=("resnet20", "resnet56"))
    parser.add_argument("--learners", nargs="+", default=list(LEARNERS), choices=LEARNERS)
    parser.add_argument("--bits", nargs="+", type=int, default=list(BITS), help="on average")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="how bits are chosen")
    parser.add_argument("--trials", type=int, default=100, help="trials of each search")
    parser.add_argument("--epochs", type=int, default=5, help="of training after quantizing; 0 for none")
    parser.add_argument("--rounding", choices=("adaround", "nearest"), default="adaround",
                        help="adaround with corrected biases, or nearest without")  # fmt: skip
    parser.add_argument("--fold", action="store_true", help="fold batch norms before quantizing")
    parser.add_argument("--buckets", choices=("tensor", "channel", "run"), help="other than each learner's own default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="pieces at once, of one thread each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
