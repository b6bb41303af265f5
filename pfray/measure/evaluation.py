"""Measurements of a model: accuracy, parameters, multiply-adds, bytes, each field named with its unit."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pfray.errors import TrainingFailed
from pfray.measure.cost import count_params, stored_bits, total_macs
from pfray.nn.inputs import count, floats, form, take
from pfray.nn.modes import autocast, evaluating, evaluation_mode, forward
from pfray.task import Samples, Task, example_input
from pfray.utils.user_code import failing_function

# Samples of one pass.
BATCH = 250
# Samples whose mean soft loss is one observation of its standard error.
GROUP = 10


@dataclass(frozen=True)
class Measurement:
    """Quality and costs of a model.

    accuracy: the task's metric, a fraction for classification, negated where lower is better. loss: mean loss.
    accuracy_error: the accuracy's standard error, for samples drawn at random; None for a metric that is no mean.
    agreement: minus the mean KL divergence from the teacher's soft labels, in nats (the task's ``soft_loss`` at a
        temperature of 1); None without a teacher. agreement_error: its standard error.
    params: count of all parameters. nonzero_params: count of those that are not 0.0.
    stored_bits: bits of all parameters: 32 for each float32, k for each weight quantized to k bits (``qparams.py``).
    macs: multiply-adds of one input through the dense model (1 MAC = one multiply and one add).
    size_bytes: bytes of the weights' file on disk; None if no file was written (in a trial).
    latency_ms: median time of one input; None if it was not timed.
    """

    accuracy: float
    loss: float
    params: int
    nonzero_params: int
    macs: int
    size_bytes: int | None = None
    latency_ms: float | None = None
    accuracy_error: float | None = None
    agreement: float | None = None
    agreement_error: float | None = None
    stored_bits: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """The fields of Measurement that a model's outputs on a split give."""

    accuracy: float
    loss: float
    accuracy_error: float | None
    agreement: float | None = None
    agreement_error: float | None = None


class Answers(NamedTuple):
    """One batch: what the task reads of a model's outputs, in float32, the targets, and the number of samples."""

    outputs: Any
    targets: Any
    samples: int


def answers_of(model: nn.Module, task: Task, split: Samples, precision: str = "float32") -> Iterator[Answers]:
    """The model's answers to ``split`` in order, on the model's device."""
    device = next(model.parameters()).device
    for inputs, targets in task.batches(split, BATCH, device):
        with evaluating(model), autocast(device, precision):
            outputs = floats(task.select(forward(model, inputs)))
        yield Answers(outputs, targets, count(inputs))


def judge(
    model: nn.Module, task: Task, answers: Iterable[Answers], soft_labels: Sequence[Answers] | None = None
) -> Evaluation:
    """Metric, loss and agreement of the ``answers_of`` a model to a split. soft_labels: the teacher's to the same one.

    The soft loss is a batch mean, so its standard error comes from the means of groups of ``GROUP`` samples.
    Raises TrainingFailed if the task's metric is not a finite number, UserCodeFailed if metric or loss fails.
    """
    scores, losses, groups, samples = [], [], [], 0
    task = task.on(next(model.parameters()).device)
    metric = fresh_metric(task) if task.accumulates and task.evaluate is None else None
    with torch.inference_mode():
        for index, (batch, targets, size) in enumerate(answers):
            samples += size
            about = f" on outputs {form(batch)} and targets {form(targets)}"
            with failing_function("score", task.score, about):
                if metric is not None:
                    metric.update(batch, targets)
                elif task.evaluate is None:
                    scores.append(task.score(batch, targets).float())
            with failing_function("loss", task.loss, about):
                losses.append(task.loss(batch, targets).float() * size)
            if soft_labels is not None:
                parts = [slice(start, start + GROUP) for start in range(0, size, GROUP)]
                pairs = [(take(batch, part), take(soft_labels[index].outputs, part)) for part in parts]
                groups += [
                    (min(GROUP, size - part.start), task.soft_loss(*pair, 1.0))
                    for part, pair in zip(parts, pairs, strict=True)
                ]
    value, error = _metric(model, task, metric, scores)
    loss = torch.stack(losses).double().sum().item() / samples
    # A model of NaNs has an accuracy, and its loss tells; where the outputs are sound, the metric is at fault.
    if not math.isfinite(value) and math.isfinite(loss):
        raise TrainingFailed(
            f"the metric {task.metric_name} is {value} on {samples} samples, though the loss is {loss:.4g}. "
            "Remedy: a metric that gives a finite number for them"
        )
    evaluation = Evaluation(value if task.higher_is_better else -value, loss, error)
    if not groups:
        return evaluation
    sizes = torch.tensor([size for size, _ in groups]).double()
    means = torch.stack([mean for _, mean in groups]).double().cpu()
    agreement = -((sizes * means).sum() / sizes.sum()).item()
    return replace(evaluation, agreement=agreement, agreement_error=_standard_error(means))


def fresh_metric(task: Task) -> Any:
    """A copy of the task's accumulating metric that has seen nothing."""
    metric = copy.deepcopy(task.score)
    metric.reset()
    return metric


def _metric(model: nn.Module, task: Task, metric: Any, scores: list[Tensor]) -> tuple[float, float | None]:
    """(value of the task's metric, its standard error)."""
    if task.evaluate is not None:
        # Trials are measured between steps of their training.
        with evaluation_mode(model), failing_function("evaluate", task.evaluate):
            return float(task.evaluate(model)), None
    if metric is not None:
        with failing_function("score", task.score):
            return float(metric.compute()), None
    each = torch.cat(scores).double().cpu()
    return each.mean().item(), _standard_error(each)


def evaluate(model: nn.Module, task: Task, split: Samples, precision: str = "float32") -> Evaluation:
    """Accuracy and loss of ``model`` on ``split``, on the device that holds the model."""
    return judge(model, task, answers_of(model, task, split, precision))


def _standard_error(values: Tensor) -> float:
    return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else 0.0


def measure(
    model: nn.Module,
    task: Task,
    split: Samples,
    precision: str = "float32",
    macs: int | None = None,
    soft_labels: Sequence[Answers] | None = None,
) -> Measurement:
    """Measure ``model`` on ``split``. macs: given if known already, to save a pass.

    soft_labels: the teacher's ``answers_of`` the split, for the agreement.
    """
    evaluation = judge(model, task, answers_of(model, task, split, precision), soft_labels)
    return measurement_of(model, task, evaluation, macs)


def measurement_of(model: nn.Module, task: Task, evaluation: Evaluation, macs: int | None = None) -> Measurement:
    """The measurement of an evaluation and the model's costs."""
    params, nonzero = count_params(model)
    if macs is None:
        macs = total_macs(model, example_input(task, next(model.parameters()).device))
    return Measurement(
        params=params, nonzero_params=nonzero, macs=macs, stored_bits=stored_bits(model), **asdict(evaluation)
    )
