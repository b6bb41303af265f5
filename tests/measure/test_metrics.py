"""Metrics by name, worked by hand and against torchmetrics."""

from __future__ import annotations

import pytest
import torch

from pfray.errors import ConfigError
from pfray.measure.metrics import NAMED, MeanIoU, MeanLoss, accuracy, mae, mse, resolve_metric, top5
from tests import torchvision_ops


def test_shares_of_right_classes():
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    assert accuracy(logits, torch.tensor([1, 1])).tolist() == [1.0, 0.0]
    pixels = logits.T.reshape(1, 2, 1, 2)
    assert accuracy(pixels, torch.tensor([[[1, 1]]])).tolist() == [0.5]
    assert top5(torch.arange(7.0).expand(2, 7), torch.tensor([2, 1])).tolist() == [1.0, 0.0]


def test_errors_are_means_over_a_sample():
    assert mse(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])).tolist() == [2.5]
    assert mae(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 5.0])).tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"shape \(3, 1\) and targets of shape \(3,\)"):
        mse(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match=r"logits of shape \(3, 1\) and targets of shape \(3, 1\)"):
        accuracy(torch.zeros(3, 1), torch.zeros(3, 1))


def test_mean_iou_is_that_of_torchmetrics():
    torchvision_ops.load()  # which torchmetrics imports
    torchmetrics = pytest.importorskip("torchmetrics")
    generator = torch.Generator().manual_seed(0)
    own, other = MeanIoU(), torchmetrics.JaccardIndex("multiclass", num_classes=4, ignore_index=255)
    for _ in range(3):
        logits = torch.randn(2, 4, 5, 5, generator=generator)
        targets = torch.randint(4, (2, 5, 5), generator=generator)
        targets[0, 0, 0] = 255
        own.update(logits, targets)
        other.update(logits.argmax(1), targets)
    assert own.compute() == pytest.approx(other.compute().item(), abs=1e-6)


def test_the_mean_loss_weighs_batches_by_their_samples():
    metric = MeanLoss(lambda outputs, targets: (outputs - targets).mean())
    metric.update(torch.ones(3), torch.zeros(3))
    metric.update(torch.full((1,), 5.0), torch.zeros(1))
    assert metric.compute() == 2.0


def test_directions_and_shares_are_known():
    assert {name: (metric.higher_is_better, metric.is_share) for name, metric in NAMED.items()} == {
        "accuracy": (True, True), "top5": (True, True), "mse": (False, False), "mae": (False, False),
        "miou": (True, True),
    }  # fmt: skip
    assert resolve_metric(mse, higher_is_better=False).metric_name == "mse"
    assert not resolve_metric("accuracy", higher_is_better=False).higher_is_better


def test_torchmetrics_say_their_direction():
    torchvision_ops.load()  # which torchmetrics imports
    torchmetrics = pytest.importorskip("torchmetrics")
    found = resolve_metric(torchmetrics.MeanSquaredError())
    assert (found.metric_name, found.higher_is_better) == ("MeanSquaredError", False)


@pytest.mark.parametrize(("metric", "words"), [("acuracy", "Did you mean 'accuracy'"), (7, "7 is no metric")])
def test_what_is_no_metric_is_one_line(metric, words):
    with pytest.raises(ConfigError, match=words):
        resolve_metric(metric)
