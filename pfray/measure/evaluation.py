"""Measurements of a model: accuracy, parameters, multiply-adds, bytes, each field named with its unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pfray.measure.cost import count_params, stored_bits, total_macs
from pfray.nn.modes import autocast, channels_last, evaluating
from pfray.task import Split, Task, example_input

# Samples whose mean soft loss is one observation of its standard error.
GROUP = 10


@dataclass(frozen=True)
class Measurement:
    """Quality and costs of a model.

    accuracy: mean score of the task, a fraction for classification. loss: mean loss.
    accuracy_error: the accuracy's standard error, for samples drawn at random.
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
    accuracy_error: float
    agreement: float | None = None
    agreement_error: float | None = None


def outputs_of(
    model: nn.Module, task: Task, split: Split, batch_size: int = 250, precision: str = "float32"
) -> list[Tensor]:
    """The model's outputs on ``split``: a float32 tensor ``(N, ...)`` for each batch, on the model's device."""
    device = next(model.parameters()).device
    outputs = []
    with evaluating(model):
        for inputs, _ in task.batches(split, batch_size, device):
            with autocast(device, precision):
                outputs.append(model(channels_last(inputs)).float())
    return outputs


def judge(
    task: Task, split: Split, outputs: Sequence[Tensor], soft_labels: Sequence[Tensor] | None = None
) -> Evaluation:
    """Score, loss and agreement of the ``outputs_of`` a model on ``split``. soft_labels: the teacher's ``outputs_of``
    it.

    The soft loss is a batch mean, so its standard error comes from the means of groups of ``GROUP`` samples.
    """
    scores, losses, groups, start = [], [], [], 0
    with torch.inference_mode():
        for index, batch in enumerate(outputs):
            targets = split.targets[start : start + len(batch)].to(batch.device)
            start += len(batch)
            scores.append(task.score(batch, targets).float())
            losses.append(task.loss(batch, targets).float() * len(targets))
            if soft_labels is not None:
                pairs = zip(batch.split(GROUP), soft_labels[index].split(GROUP), strict=True)
                groups += [(len(own), task.soft_loss(own, soft, 1.0)) for own, soft in pairs]
    score = torch.cat(scores).double().cpu()
    evaluation = Evaluation(
        score.mean().item(), torch.stack(losses).double().sum().item() / len(split), _standard_error(score)
    )
    if not groups:
        return evaluation
    sizes = torch.tensor([size for size, _ in groups]).double()
    means = torch.stack([mean for _, mean in groups]).double().cpu()
    agreement = -((sizes * means).sum() / sizes.sum()).item()
    return replace(evaluation, agreement=agreement, agreement_error=_standard_error(means))


def evaluate(
    model: nn.Module, task: Task, split: Split, batch_size: int = 250, precision: str = "float32"
) -> Evaluation:
    """Accuracy and loss of ``model`` on ``split``, on the device that holds the model."""
    return judge(task, split, outputs_of(model, task, split, batch_size, precision))


def _standard_error(values: Tensor) -> float:
    return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else 0.0


def measure(
    model: nn.Module,
    task: Task,
    split: Split,
    precision: str = "float32",
    macs: int | None = None,
    soft_labels: Sequence[Tensor] | None = None,
) -> Measurement:
    """Measure ``model`` on ``split``. macs: given if known already, to save a pass.

    soft_labels: the teacher's ``outputs_of`` the split, for the agreement.
    """
    evaluation = judge(task, split, outputs_of(model, task, split, precision=precision), soft_labels)
    return measurement_of(model, task, evaluation, macs)


def measurement_of(model: nn.Module, task: Task, evaluation: Evaluation, macs: int | None = None) -> Measurement:
    """The measurement of an evaluation and the model's costs."""
    params, nonzero = count_params(model)
    if macs is None:
        macs = total_macs(model, example_input(task, next(model.parameters()).device))
    return Measurement(
        params=params, nonzero_params=nonzero, macs=macs, stored_bits=stored_bits(model), **asdict(evaluation)
    )
