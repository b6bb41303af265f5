"""Metrics by name, worked by hand and against torchmetrics."""

from __future__ import annotations

import pytest
import torch

from benchmarks import torchvision_ops
from pfray.errors import ConfigError
from pfray.measure.metrics import NAMED, MeanIoU, MeanLoss, accuracy, mae, mse, resolve_metric, top5


def test_shares_of_right_classes():
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    assert accuracy(logits, torch.tensor([1, 1])).tolist() == [1.0, 0.0]
    pixels = logits.T.reshape(1, 2, 1, 2)
    assert accuracy(pixels, torch.tensor([[[1, 1]]])).tolist() == [0.5]
    assert top5(torch.arange(7.0).expand(2, 7), torch.tensor([2, 1])).tolist() == [1.0, 0.0]
    assert top5(torch.arange(7.0).reshape(1, 7, 1).expand(1, 7, 2), torch.tensor([[2, 1]])).tolist() == [0.5]


def test_errors_are_means_over_a_sample():
    assert mse(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])).tolist() == [2.5]
    assert mae(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 5.0])).tolist() == [1.0, 2.0]


FLOATS = "for numbers; for a single logit a function of (outputs, targets) that gives each sample's score"
MISFITS = {
    "a column of outputs": (
        lambda: mse(torch.zeros(3, 1), torch.zeros(3)),
        "metric: mse compares outputs and targets of one shape, and the outputs are float32 (3, 1), the targets "
        "float32 (3,). Remedy: targets.unsqueeze(1) in the data, or outputs.squeeze(1) in the model or loss",
    ),
    "class numbers of an error": (
        lambda: mae(torch.zeros(3, 4), torch.zeros(3).long()),
        "metric: mae compares outputs and targets of one shape, and the outputs are float32 (3, 4), the targets "
        "int64 (3,). Remedy: metric='accuracy' for class numbers",
    ),
    "numbers": (
        lambda: accuracy(torch.zeros(3), torch.zeros(3)),
        "metric: accuracy needs logits (N, K) of 2 or more classes and class numbers (N,), and the outputs are "
        f"float32 (3,), the targets float32 (3,). Remedy: metric='mse' or 'mae' {FLOATS}",
    ),
    "a column of numbers": (
        lambda: top5(torch.zeros(3, 1), torch.zeros(3, 1)),
        "metric: top5 needs logits (N, K) of 2 or more classes and class numbers (N,), and the outputs are "
        f"float32 (3, 1), the targets float32 (3, 1). Remedy: metric='mse' or 'mae' {FLOATS}",
    ),
    "one-hot classes": (
        lambda: MeanIoU().update(torch.zeros(3, 4), torch.zeros(3, 4)),
        "metric: miou needs logits (N, K) of 2 or more classes and class numbers (N,), and the outputs are "
        "float32 (3, 4), the targets float32 (3, 4). Remedy: targets.argmax(1) where they are one-hot",
    ),
    "a label without a class": (
        lambda: accuracy(torch.zeros(1, 4, 2), torch.tensor([[0, 255]])),
        "metric: accuracy would count the label 255 as a mistake; class numbers are 0 to 3. Remedy: metric='miou', "
        "which leaves other labels out, or a function of (outputs, targets) that gives each sample's score",
    ),
}  # fmt: skip


@pytest.mark.parametrize("misfit", MISFITS)
def test_outputs_and_targets_that_a_metric_does_not_take_are_one_line(misfit):
    make, line = MISFITS[misfit]
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == line


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
    assert not resolve_metric(mse, higher_is_better=False).higher_is_better
    assert resolve_metric("accuracy", higher_is_better=True).higher_is_better


def test_another_direction_than_a_metrics_own_is_refused():
    words = "higher_is_better is False, and higher is better for the metric accuracy. Remedy: leave it out"
    with pytest.raises(ConfigError, match=f"^{words}$"):
        resolve_metric("accuracy", higher_is_better=False)
    with pytest.raises(ConfigError, match=r"^higher_is_better: 'max' is not allowed. Allowed: True, False or None$"):
        resolve_metric(mse, higher_is_better="max")


def test_torchmetrics_say_their_direction():
    torchvision_ops.load()  # which torchmetrics imports
    torchmetrics = pytest.importorskip("torchmetrics")
    found = resolve_metric(torchmetrics.MeanSquaredError())
    assert (found.metric_name, found.higher_is_better) == ("MeanSquaredError", False)
    with pytest.raises(ConfigError, match="True, and lower is better for the metric MeanSquaredError"):
        resolve_metric(torchmetrics.MeanSquaredError(), higher_is_better=True)


@pytest.mark.parametrize(("metric", "words"), [
    ("acuracy", "Did you mean 'accuracy'"), (7, "7 is no metric"),
    (MeanIoU, r"^metric: the class MeanIoU. Remedy: an instance, MeanIoU\(...\)$"),
])  # fmt: skip
def test_what_is_no_metric_is_one_line(metric, words):
    with pytest.raises(ConfigError, match=words):
        resolve_metric(metric)
