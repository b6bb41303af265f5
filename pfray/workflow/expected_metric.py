"""Check of the teacher's metric on the validation split against what is expected of it.

Published weights that get inputs of another normalization, or classes in another order, run without an error and are
right by chance alone, and everything made from them is worthless.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from pfray.config.schema import Experiment
from pfray.errors import ConfigError, TrainingFailed, WeightsError, short
from pfray.measure.evaluation import evaluate
from pfray.nn.stated_accuracy import stated_accuracy
from pfray.reporting.metric import PrintedMetric
from pfray.task import Task, top1

# Validation samples, enough to tell half of an accuracy from the whole.
SAMPLES = 500


class Expected(NamedTuple):
    """value: of the task's metric, with the metric's own sign. source: who states it."""

    value: float
    source: str


class Found(NamedTuple):
    """words: the metric found, beside the one expected. is_far: less than half of it, or more than twice an error."""

    words: str
    is_far: bool


def expected_of(experiment: Experiment, task: Task) -> Expected | None:
    """The metric that ``teacher.expect`` or the weights file states; None if neither does.

    Raises ConfigError if ``teacher.expect`` is out of the metric's range.
    """
    expect, weights = experiment.teacher.expect, experiment.model.weights
    if expect is None:
        # A file's accuracy is known to be one; another metric's unit is not.
        stated = stated_accuracy(Path(weights)) if weights is not None and task.score is top1 else None
        return None if stated is None else Expected(stated, "the file")
    if task.is_share and expect > 1:
        raise ConfigError(
            f"teacher.expect: {expect:g} is not allowed, since {task.metric_name} is a share: above 0 to 1, such as 71%"
        )
    return Expected(expect, "teacher.expect")


def check_ready_teacher(
    experiment: Experiment, expected: Expected, model: nn.Module, task: Task, note: Callable[[str], None]
) -> None:
    """Check a teacher that comes trained, and ``note`` what it has. Raises WeightsError."""
    weights = experiment.model.weights
    title = "the model" if weights is None else f"model.weights: {short(weights, 200)}"
    found = _measured(model, task, expected)
    if found.is_far:
        raise WeightsError(
            f"{title} has {found.words}. The usual causes: its training normalized the inputs in another way (mean, "
            "std, 0..1 or 0..255, RGB or BGR), or had the classes in another order. Remedy: data as its training had "
            "them, or another teacher.expect"
        )
    note(f"{title} has {found.words}")


def check_trained_teacher(expected: Expected, model: nn.Module, task: Task, note: Callable[[str], None]) -> None:
    """Check a teacher that the run has trained, and ``note`` what it has. Raises TrainingFailed."""
    found = _measured(model, task, expected)
    if found.is_far:
        raise TrainingFailed(
            f"the teacher was trained to {found.words}. Remedy: more teacher.epochs, another teacher.lr or another "
            "teacher.expect"
        )
    note(f"the teacher was trained to {found.words}")


def _measured(model: nn.Module, task: Task, expected: Expected) -> Found:
    metric = PrintedMetric(task.metric_name, task.higher_is_better, task.is_share)
    split = task.validation.head(SAMPLES)
    measured = evaluate(model, task, split).accuracy
    value, stated = metric.value(measured), metric.text(metric.value(expected.value))
    enough = value >= expected.value / 2 if metric.higher_is_better else value <= 2 * expected.value
    where = "" if task.evaluate is not None else f" on {len(split)} validation samples"
    beside = "" if enough else "less than half of " if metric.higher_is_better else "more than twice "
    return Found(
        f"{metric.name} {metric.text(measured)}{where}, {beside}{stated} as {expected.source} states", not enough
    )
