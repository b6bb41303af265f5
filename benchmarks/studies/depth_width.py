"""ResNet-56 with fewer blocks and fewer channels together, against fewer channels alone, at equal multiply-adds.

Both plans are ``allocate``'s and need no search. Each network is measured without training and after a training with
the teacher's soft labels, and its .tflite is timed in turns with the other's and the teacher's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import SKIPPED, close, is_missing
from benchmarks.sparse_resnet import job, needed

NAME, MODEL = "depth_width", "resnet56"
FASTER = ">= 1.2"
WIDTH = {"name": "channel_pruned", "skip": ["conv1"]}
METHODS: dict[str, list[Any]] = {"width": [WIDTH], "depth and width": ["layer_removal", WIDTH]}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(MODEL), "put the data there"):
        return SKIPPED
    from dataclasses import replace

    work = job(MODEL)
    task = replace(
        work.task, train=work.task.train.head(options.train_images), test=work.task.test.head(options.test_images)
    )
    models = {}
    for method, learners in METHODS.items():
        models[method] = compressed(work.teacher, task, learners, options)
        report(method, models[method], task)
        train(models[method], work.teacher, task, options.epochs)
    for method, milliseconds in timed(work.teacher, models, task, options.rounds).items():
        print(f"{method}: {milliseconds:.3f} ms on one thread, {percent(models.get(method, work.teacher), task):.2f} % "
              f"after {options.epochs} epochs", flush=True)  # fmt: skip
        if method == "width":
            alone = milliseconds
    close(NAME, alone / milliseconds, "times faster than channels alone", FASTER)
    return 0


def compressed(teacher: Any, task: Any, learners: list[Any], options: argparse.Namespace) -> Any:
    """The network of ``allocate``'s plan, by the learners' ``finish`` one after the other."""
    import numpy as np

    from pfray.config.registry import parse_settings
    from pfray.learner.pipeline import Pipeline, Settings, split_plan
    from pfray.search.allocate import allocate_plan

    images = [learner if isinstance(learner, dict) else {"name": learner} for learner in learners]
    entries = [{**learner, "images": options.images} for learner in images]
    # A pipeline has two learners or more; the last one here changes nothing.
    steps = parse_settings("learner", Settings, {"steps": [*entries, "litert_quant"]}).steps[:-1]
    if len(steps) == 1:
        algorithm = steps[0].bind(teacher, task)
        space, curves = algorithm.space(), algorithm.error_curves()
    else:
        pipeline = Pipeline(teacher, task, Settings(steps))
        space, curves = pipeline.space(), pipeline.error_curves()
    whole = space.costs_at(np.ones(len(space)))["macs"]
    plan = allocate_plan(space, curves, {"macs": options.share * whole})
    gone = [name for name, knob in zip(plan, space.knobs, strict=True) if knob.kind == "layer" and plan[name] == 0]
    print(f"{len(gone)} layers and blocks removed: {', '.join(gone) or 'none'}", flush=True)
    model = teacher
    for step, own in split_plan(Settings(steps), plan) if len(steps) > 1 else [(steps[0], plan)]:
        model = step.bind(model, task).finish(own).model
    return model


def train(model: Any, teacher: Any, task: Any, epochs: int) -> None:
    from pfray.training.loop import choose_precision, fit
    from pfray.training.settings import Distill, Training

    if epochs:
        training = Training(epochs=epochs, lr=0.02, batch_size=128, warmup_epochs=0)
        fit(model, task, training, seed=0, precision=choose_precision(model, next(model.parameters()).device),
            teacher=teacher, distill=Distill(weight=0.9))  # fmt: skip


def report(method: str, model: Any, task: Any) -> None:
    import copy

    from pfray.measure.cost import count_params, total_macs
    from pfray.task import example_input
    from pfray.training.batch_norm import reestimate_batch_norm

    untrained = copy.deepcopy(model)
    reestimate_batch_norm(untrained, task, 500, "float32")
    print(f"{method}: {total_macs(model, example_input(task)) / 1e6:.1f} M multiply-adds, {count_params(model)[0]:,} "
          f"parameters, {percent(untrained, task):.2f} % without training", flush=True)  # fmt: skip


def percent(model: Any, task: Any) -> float:
    from pfray.measure.evaluation import evaluate

    return 100 * evaluate(model, task, task.test).accuracy


def timed(teacher: Any, models: dict[str, Any], task: Any, rounds: int) -> dict[str, float]:
    """Milliseconds of one image on one thread, by method and ``teacher``; timed in turns."""
    from pfray import bench
    from pfray.export.tflite import convert
    from pfray.task import example_input

    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{number}.tflite" for number, name in enumerate(["teacher", *models])}
        for name, file in files.items():
            convert.export(models.get(name, teacher).eval(), example_input(task), file)
        return dict(zip(files, bench.latency_ms(list(files.values()), rounds=rounds), strict=True))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(f"studies.{NAME}", "Measure layers and channels removed together against channels alone.")
    parser.add_argument("--share", type=float, default=0.3, help="multiply-adds that are left")
    parser.add_argument("--epochs", type=int, default=20, help="of training after both")
    parser.add_argument("--images", type=int, default=1000, help="training images for calibration")
    parser.add_argument("--train-images", type=int, default=50000)
    parser.add_argument("--test-images", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=30, help="of timing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
