"""Metrics by name, and those of a user's own, in the form that a task takes.

Notation: N samples in a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfray.errors import ConfigError, nearest, shown
from pfray.nn.inputs import count
from pfray.task import top5


@dataclass(frozen=True)
class Metric:
    """A metric: the fields ``score``, ``metric_name``, ``higher_is_better`` and ``is_share`` of a Task."""

    score: Any
    metric_name: str
    higher_is_better: bool = True
    is_share: bool = False


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of right classes, ``(N,)``: of logits ``(N, K, ...)`` and class numbers ``(N, ...)``, such as pixels'.

    Raises ValueError for targets of another shape.
    """
    best = outputs.argmax(1)
    # Broadcasting would compare every sample with every other.
    if best.shape != targets.shape:
        raise ValueError(f"logits of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}")
    right = (best == targets).float()
    return right.flatten(1).mean(1) if right.dim() > 1 else right


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each sample, ``(N,)``. Raises ValueError for targets of another shape."""
    return _difference(outputs, targets).square().flatten(1).mean(1)


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error of each sample, ``(N,)``. Raises ValueError for targets of another shape."""
    return _difference(outputs, targets).abs().flatten(1).mean(1)


def _difference(outputs: Tensor, targets: Tensor) -> Tensor:
    # Broadcasting (N,) against (N, 1) would compare every sample with every other.
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}")
    return (outputs - targets)[:, None]


class MeanIoU:
    """Intersection over union, the mean over the classes that occur (Everingham et al. 2010, section 4.2).

    Of logits ``(N, K, ...)`` and class numbers ``(N, ...)``; targets outside 0 to K - 1, such as 255, are left out.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.counts: Tensor | None = None

    def update(self, outputs: Tensor, targets: Tensor) -> None:
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
    if isinstance(metric, str):
        if metric not in NAMED:
            raise ConfigError(
                f"metric: unknown metric {shown(metric)}. Allowed: {', '.join(NAMED)}, or a function of (outputs, "
                f"targets).{nearest(metric, NAMED)}"
            )
        found = NAMED[metric]
    elif all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset")):
        # torchmetrics says None where it does not know.
        found = Metric(metric, type(metric).__name__, getattr(metric, "higher_is_better", None) is not False)
    elif callable(metric):
        found = Metric(metric, getattr(metric, "__name__", type(metric).__name__).strip("<>"))
    else:
        raise ConfigError(
            f"metric: {shown(metric)} is no metric. Allowed: {', '.join(NAMED)}, a torchmetrics metric, or a function "
            "of (outputs, targets) that gives a score for each sample"
        )
    if higher_is_better is None:
        return found
    return Metric(found.score, found.metric_name, higher_is_better, found.is_share)
