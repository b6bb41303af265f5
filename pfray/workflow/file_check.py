"""Check of a ``.tflite``: its outputs and its score beside the model's on the same samples.

A float file gives the model's outputs but for float32's rounding. A file that rounds to 8 bits where the model does
cannot: one value on the edge between two steps falls to the other side, and in a deep network single outputs then
differ by much. Two roundings of one network differ from each other about as much as each does from the network in
float, so that distance is the measure, besides the task's own score.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfray.errors import ExportError
from pfray.export.shipped import shipped
from pfray.export.tflite import convert
from pfray.measure.evaluation import fresh_metric
from pfray.nn.inputs import Inputs, count, floats, take, tensors
from pfray.task import Split, Task

# Largest difference of a float file's output from the model's, as a share of the largest value of that output.
MAX_RELATIVE_DIFFERENCE = 1e-2
# Added to it, absolute: float32's own rounding, for outputs of nearly 0.
ROUNDING = 1e-5
# Largest distance of a file that rounds, and how much of the model's own distance from float it may be.
MAX_INT8_DISTANCE, OWN_DISTANCES = 0.1, 1.5
# Largest difference of the scores, absolute and as a share of the scores' spread; of a file that rounds, absolute.
MAX_SCORE_DIFFERENCE, SCORE_SHARE, MAX_INT8_SCORE_DIFFERENCE = 0.01, 0.02, 0.02
# Samples on which the model's own rounding is measured.
SAMPLES = 500


@dataclass(frozen=True)
class Checked:
    """Comparison of file and model.

    accuracy, torch_accuracy: the metric of the file and of the model; None for one that needs a model. images: samples.
    max_abs_diff: the largest difference of an output. distance: the largest ``distances`` of the file's outputs from
    the model's; rounding: of the model's from its own in float, None if it does not round.
    """

    accuracy: float | None
    torch_accuracy: float | None
    images: int
    max_abs_diff: float
    distance: float
    rounding: float | None = None


def check(model: nn.Module, task: Task, path: Path, images: int | None, rounds: bool) -> Checked:
    """Run the file on the first ``images`` test samples (None: all). rounds: True if it rounds to 8 bits.

    Raises ExportError if file and model disagree, BenchError if the file does not run.
    """
    test = task.test.head(len(task.test) if images is None else images)
    inputs = task.normalize(test.inputs)
    compared = convert.compare(path, model, inputs)
    rounding = _rounding(model, inputs, compared.model) if rounds else None
    _check_outputs(path, compared, rounding, rounds)
    accuracy, torch_accuracy = _check_scores(path, task, test, compared, rounds)
    return Checked(
        accuracy, torch_accuracy, len(test), compared.largest_difference,
        max(distances(compared.file, compared.model)), None if rounding is None else max(rounding),
    )  # fmt: skip


def distances(found: Any, expected: Any) -> list[float]:
    """Mean absolute difference of each output, as a share of the standard deviation of the expected one.

    A wrong output is about 1 away, 0.1 is 20 dB of noise. Of outputs in whole numbers, the share that differs.
    """
    return [_distance(own, other) for own, other in zip(tensors(found), tensors(expected), strict=True)]


def _distance(found: Tensor, expected: Tensor) -> float:
    if not expected.is_floating_point():
        return float((found != expected).double().mean())
    difference = (found.double() - expected.double()).abs().mean()
    values = expected.double()
    # An output that is the same everywhere has no spread.
    spread = max(float(values.std(correction=0)), MAX_RELATIVE_DIFFERENCE * float(values.abs().max()), ROUNDING)
    return float(difference) / spread


def _rounding(model: nn.Module, inputs: Inputs, outputs: Any) -> list[float] | None:
    """``distances`` of the model's outputs from its own without rounding; None for a model that rounds nothing."""
    samples = slice(0, min(SAMPLES, count(inputs)))
    with shipped(model).unrounded() as changed:
        if not changed:
            return None
        return distances(take(outputs, samples), convert.outputs_of(model, take(inputs, samples)))


def _check_outputs(path: Path, compared: convert.Compared, rounding: list[float] | None, rounds: bool) -> None:
    found, expected = tensors(compared.file), tensors(compared.model)
    for index, (own, other, distance) in enumerate(zip(found, expected, distances(found, expected), strict=True)):
        which = f"output {index + 1} of {len(found)} " if len(found) > 1 else ""
        remedy = "Remedy: export.tflite=false to do without it, and report the model"
        if rounds:
            allowed = max(MAX_INT8_DISTANCE, OWN_DISTANCES * rounding[index] if rounding else 0.0)
            if not distance <= allowed:
                raise ExportError(
                    f"{path} differs from the model: {which}is {distance:.2g} of its spread away on average, at most "
                    f"{allowed:.2g} is allowed. {remedy}"
                )
            continue
        largest = float((own.double() - other.double()).abs().max())
        if not largest <= MAX_RELATIVE_DIFFERENCE * float(other.double().abs().max()) + ROUNDING:
            raise ExportError(
                f"{path} differs from the model by up to {largest:g}{f' in {which.strip()}' if which else ''} on "
                f"{len(own)} test images. {remedy}"
            )


def _check_scores(
    path: Path, task: Task, test: Split, compared: convert.Compared, rounds: bool
) -> tuple[float, float] | tuple[None, None]:
    """(the task's metric of the file, of the model), negated where lower is better; None for a metric that needs the
    model, where the losses are compared. Raises ExportError if they differ too much.
    """
    task = task.on(torch.device("cpu"))
    least = MAX_INT8_SCORE_DIFFERENCE if rounds else MAX_SCORE_DIFFERENCE
    selected = [floats(task.select(outputs)) for outputs in (compared.file, compared.model)]
    if task.evaluate is not None:
        values = [float(task.loss(outputs, test.targets)) for outputs in selected]
        allowed = max(least, SCORE_SHARE * abs(values[1]))
    elif task.accumulates:
        values = [_accumulated(task, outputs, test.targets) for outputs in selected]
        allowed = max(least, SCORE_SHARE * abs(values[1]), 1.5 / len(test))
    else:
        own, other = (task.score(outputs, test.targets).double() for outputs in selected)
        values = [own.mean().item(), other.mean().item()]
        # With few samples, a single one between two classes proves nothing.
        both = torch.stack([own, other])
        single = 1.5 * float(both.max() - both.min()) / len(test)
        allowed = max(least, SCORE_SHARE * float(other.std(correction=0)), single)
        if rounds:
            # Samples that change to the better and to the worse by chance.
            allowed = max(allowed, 2 * float((own - other).std(correction=0)) / len(test) ** 0.5)
    name = "loss" if task.evaluate is not None else task.metric_name
    if not abs(values[0] - values[1]) <= allowed:
        raise ExportError(
            f"{path} has {name} {abs(values[0]):.4f}, the model {abs(values[1]):.4f} on the same {len(test)} test "
            "samples. Remedy: export.tflite=false to do without it, and report the model"
        )
    if task.evaluate is not None:
        return None, None
    sign = 1 if task.higher_is_better else -1
    return sign * values[0], sign * values[1]


def _accumulated(task: Task, outputs: Any, targets: Any) -> float:
    metric = fresh_metric(task)
    metric.update(outputs, targets)
    return float(metric.compute())
