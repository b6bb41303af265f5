"""How a task judges models, in words that tell one way from another."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import torchvision_ops
from pfray.measure.metrics import MeanLoss
from pfray.storage.judging import described, judging, judging_differences
from tests.small import make_task


class Share:
    """total: changes while it is used."""

    def __init__(self, threshold: float, within: Callable[..., Any] = F.relu) -> None:
        self.threshold, self.within, self.total = threshold, within, 0.0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total += 1.0


def weighted(weight: float) -> Callable[..., Any]:
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return weight * outputs.sum()

    return loss


@pytest.mark.parametrize(("value", "expected"), [
    (None, "None"),
    ("logits", "'logits'"),
    (1, "1"),
    (operator.itemgetter("a"), "operator.itemgetter('a')"),
    (F.mse_loss, "torch.nn.functional.mse_loss"),
    (partial(F.cross_entropy, label_smoothing=0.1), "torch.nn.functional.cross_entropy(label_smoothing=0.1)"),
    (weighted(0.5), f"{__name__}.weighted.<locals>.loss(weight=0.5)"),
    (Share(0.5), f"{__name__}.Share(threshold=0.5, within=torch.nn.functional.relu)"),
    (Share(0.5).update, f"{__name__}.Share(threshold=0.5, within=torch.nn.functional.relu).update"),
    (nn.CrossEntropyLoss(torch.tensor([0.1, 2.0])), "torch.nn.modules.loss.CrossEntropyLoss(weight=[0.1, 2.0], "
     "ignore_index=-100, reduction='mean', label_smoothing=0.0)"),
])  # fmt: skip
def test_functions_and_objects_have_names_with_their_settings(value, expected):
    assert described(value) == expected


def test_many_numbers_are_a_key_that_tells_them_apart():
    one, other = (described(nn.NLLLoss(torch.full((20,), weight))) for weight in (0.1, 0.2))
    assert "weight=20 numbers " in one
    assert one != other


def test_use_is_no_change():
    share, loss = Share(0.5), weighted(0.5)
    before = described(share), described(loss)
    share.update(torch.ones(2), torch.ones(2))
    loss(torch.ones(2), None)
    assert (described(share), described(loss)) == before


def test_a_metric_of_torchmetrics_counts_with_its_settings():
    torchvision_ops.load()
    metrics = pytest.importorskip("torchmetrics")
    task = make_task()

    def of(top_k: int) -> dict[str, str]:
        metric = metrics.Accuracy(task="multiclass", num_classes=3, top_k=top_k)
        metric.update(torch.eye(3), torch.arange(3))
        return judging(replace(task, score=metric, metric_name="MulticlassAccuracy"))

    known = of(1)
    assert judging_differences(known, of(1)) == []
    (changed,) = judging_differences(known, of(2))
    assert changed.startswith("score torchmetrics.classification.accuracy.MulticlassAccuracy(")
    assert "num_classes=3" in known["score"]


def test_the_mean_of_the_loss_is_named_once():
    task = make_task()
    one, other = (judging(replace(task, loss=loss, score=MeanLoss(loss))) for loss in (F.mse_loss, F.l1_loss))
    assert judging_differences(one, other) == [
        "loss torch.nn.functional.l1_loss instead of torch.nn.functional.mse_loss"
    ]
