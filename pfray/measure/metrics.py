"""Metrics by name, and those of a user's own, in the form that a task takes.

Notation: N samples in a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pfray.errors import ConfigError, nearest, shown
from pfray.nn.inputs import count, form
from pfray.nn.output_checks import alike
from pfray.task import top5 as among_five

# The way out for what no metric with a name fits.
OWN = "a function of (outputs, targets) that gives each sample's score"


@dataclass(frozen=True)
class Metric:
    """A metric: the fields ``score``, ``metric_name``, ``higher_is_better`` and ``is_share`` of a Task."""

    score: Any
    metric_name: str
    higher_is_better: bool = True
    is_share: bool = False


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of right classes, ``(N,)``: of logits ``(N, K, ...)`` and class numbers ``(N, ...)``, such as pixels'.

    Raises ConfigError for outputs and targets of other shapes.
    """
    _check_logits("accuracy", outputs, targets)
    if bool(((targets < 0) | (targets >= outputs.shape[1])).any()):
        wrong = targets[(targets < 0) | (targets >= outputs.shape[1])]
        raise ConfigError(
            f"metric: accuracy would count the label {wrong[0].item():g} as a mistake; class numbers are 0 to "
            f"{outputs.shape[1] - 1}. Remedy: metric='miou', which leaves other labels out, or {OWN}"
        )
    right = (outputs.argmax(1) == targets).float()
    return right.flatten(1).mean(1) if right.dim() > 1 else right


def top5(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of right classes among the five largest logits, ``(N,)``: of logits ``(N, K, ...)`` and class numbers.

    Raises ConfigError for outputs and targets of other shapes.
    """
    _check_logits("top5", outputs, targets)
    return among_five(outputs, targets)


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each sample, ``(N,)``. Raises ConfigError for targets of another shape."""
    return _difference("mse", outputs, targets).square().flatten(1).mean(1)


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error of each sample, ``(N,)``. Raises ConfigError for targets of another shape."""
    return _difference("mae", outputs, targets).abs().flatten(1).mean(1)


def _difference(name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    # Broadcasting (N,) against (N, 1) would compare every sample with every other.
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or outputs.shape != targets.shape:
        raise ConfigError(
            f"metric: {name} compares outputs and targets of one shape, and the outputs are {form(outputs)}, the "
            f"targets {form(targets)}. Remedy: {_numbers_remedy(outputs, targets)}"
        )
    return (outputs - targets)[:, None]


def _numbers_remedy(outputs: Any, targets: Any) -> str:
    if (remedy := alike(outputs, targets)) is not None:
        return remedy
    if isinstance(targets, Tensor) and not targets.is_floating_point() and _are_logits(outputs, targets):
        return "metric='accuracy' for class numbers"
    return OWN


def _check_logits(name: str, outputs: Tensor, targets: Tensor) -> None:
    """Raise ConfigError unless there are logits of several classes, and a class number for each of their places."""
    if _are_logits(outputs, targets):
        return
    raise ConfigError(
        f"metric: {name} needs logits (N, K) of 2 or more classes and class numbers (N,), and the outputs are "
        f"{form(outputs)}, the targets {form(targets)}. Remedy: {_classes_remedy(outputs, targets)}"
    )


def _are_logits(outputs: Any, targets: Any) -> bool:
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or outputs.dim() < 2:
        return False
    return outputs.shape[1] > 1 and outputs.shape[:1] + outputs.shape[2:] == targets.shape


def _classes_remedy(outputs: Any, targets: Any) -> str:
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return OWN
    if outputs.dim() < 2 or outputs.shape[1] == 1:
        return f"metric='mse' or 'mae' for numbers; for a single logit {OWN}"
    if targets.shape == outputs.shape:
        return "targets.argmax(1) where they are one-hot"
    return "targets.squeeze(1)" if targets.shape == (len(outputs), 1) else OWN


class MeanIoU:
    """Intersection over union, the mean over the classes that occur (Everingham et al. 2010, section 4.2).

    Of logits ``(N, K, ...)`` and class numbers ``(N, ...)``; targets outside 0 to K - 1, such as 255, are left out.
    """

    higher_is_better = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.counts: Tensor | None = None

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        _check_logits("miou", outputs, targets)
        classes = outputs.shape[1]
        known = (targets >= 0) & (targets < classes)
        pairs = targets[known] * classes + outputs.argmax(1)[known]
        found = torch.bincount(pairs.flatten(), minlength=classes * classes).view(classes, classes).cpu()
        self.counts = found if self.counts is None else self.counts + found

    def compute(self) -> float:
        assert self.counts is not None
        both = self.counts.diag().double()
        union = self.counts.sum(0) + self.counts.sum(1) - both
        return (both[union > 0] / union[union > 0]).mean().item()


class MeanLoss:
    """The mean of a loss that is a batch mean, over all samples."""

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        self.loss = loss
        self.reset()

    def reset(self) -> None:
        self.total, self.samples = 0.0, 0

    def update(self, outputs: Any, targets: Any) -> None:
        size = count(targets)
        self.total += float(self.loss(outputs, targets)) * size
        self.samples += size

    def compute(self) -> float:
        return self.total / max(1, self.samples)


NAMED: dict[str, Metric] = {
    "accuracy": Metric(accuracy, "accuracy", is_share=True),
    "top5": Metric(top5, "top5", is_share=True),
    "mse": Metric(mse, "mse", higher_is_better=False),
    "mae": Metric(mae, "mae", higher_is_better=False),
    "miou": Metric(MeanIoU(), "miou", is_share=True),
}


def resolve_metric(metric: Any, higher_is_better: bool | None = None) -> Metric:
    """The metric of a name, a torchmetrics metric, or a function of (outputs, targets) that gives ``(N,)`` scores.

    higher_is_better: None for what the metric says of itself, else True. Raises ConfigError.
    """
    if isinstance(metric, type):
        raise ConfigError(f"metric: the class {metric.__name__}. Remedy: an instance, {metric.__name__}(...)")
    if isinstance(metric, str):
        if metric not in NAMED:
            raise ConfigError(
                f"metric: unknown metric {shown(metric)}. Allowed: {', '.join(NAMED)}, or a function of (outputs, "
                f"targets).{nearest(metric, NAMED)}"
            )
        found, known = NAMED[metric], True
    elif all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset")):
        # torchmetrics says None where it does not know.
        direction = getattr(metric, "higher_is_better", None)
        found, known = Metric(metric, type(metric).__name__, direction is not False), direction is not None
    elif callable(metric):
        found, known = Metric(metric, getattr(metric, "__name__", type(metric).__name__).strip("<>")), False
    else:
        raise ConfigError(
            f"metric: {shown(metric)} is no metric. Allowed: {', '.join(NAMED)}, a torchmetrics metric, or a function "
            "of (outputs, targets) that gives a score for each sample"
        )
    return directed(found, higher_is_better, known)


def directed(metric: Metric, higher_is_better: bool | None, known: bool) -> Metric:
    """The metric with its direction, as a user gives it. known: the metric has one of its own.

    Raises ConfigError for the other direction than a metric's own, with which the worst model would be chosen.
    """
    if higher_is_better is None:
        return metric
    if not isinstance(higher_is_better, bool):
        raise ConfigError(f"higher_is_better: {shown(higher_is_better)} is not allowed. Allowed: True, False or None")
    if known and higher_is_better != metric.higher_is_better:
        better = "higher" if metric.higher_is_better else "lower"
        raise ConfigError(
            f"higher_is_better is {higher_is_better}, and {better} is better for the metric {metric.metric_name}. "
            "Remedy: leave it out"
        )
    return replace(metric, higher_is_better=higher_is_better)
