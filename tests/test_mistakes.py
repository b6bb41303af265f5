"""A mistake in a request from Python is one exact line, before Ray starts and anything is written."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import pfray
from pfray.errors import PfrayError
from pfray.measure.evaluation import measure
from pfray.measure.metrics import MeanIoU
from pfray.nn.output_checks import check_output
from pfray.workflow.given import Judging, given_run
from tests.mistakes import MISTAKES, NUMBERS, Net, X, Y


@pytest.mark.filterwarnings("error::UserWarning")  # such as torch's of losses that broadcast
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_remedy(mistake, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    changes, line = MISTAKES[mistake]
    given = {"model": Net(), "train": (X, Y), **changes}
    given.setdefault("validation", given["train"])
    with pytest.raises(PfrayError) as caught:
        pfray.compress(**given, target={"macs": "0.5x"}, storage=tmp_path / "runs")
    assert str(caught.value) == line
    assert not (tmp_path / "runs").exists()


class Undefined(MeanIoU):
    """Undefined for fewer than ten samples, as a correlation may be."""

    def compute(self) -> float:
        assert self.counts is not None
        if self.counts.sum() < 10:
            warnings.warn("too few", UserWarning, stacklevel=2)
            return float("nan")
        return super().compute()


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_metric_that_two_samples_are_too_few_for_is_taken():
    found = given_run(Net(), (X, Y), (X, Y), (X, Y), Judging(metric=Undefined()))
    check_output(found.model, found.task)
    assert 0 < measure(found.model, found.task, found.task.test).accuracy < 1


def test_losses_that_make_one_shape_of_outputs_and_targets_are_taken():
    for loss in (
        lambda outputs, targets: F.mse_loss(outputs[:, 0], targets), lambda o, t: F.mse_loss(o.squeeze(), t),
        lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs.flatten(), (targets > 0).float()),
    ):  # fmt: skip
        data = (X, NUMBERS)
        found = given_run(Net(1), data, data, data, Judging(loss=loss))
        check_output(found.model, found.task)


def test_a_label_that_the_loss_ignores_may_be_in_every_split_where_the_metric_leaves_it_out():
    maps = torch.randint(4, (40, 8, 8), generator=torch.Generator().manual_seed(0))
    maps[:, 0] = 255
    data = TensorDataset(X, maps)
    judged = Judging(loss=nn.CrossEntropyLoss(ignore_index=255), metric="miou")
    found = given_run(nn.Sequential(nn.Conv2d(3, 4, 1)), data, data, data, judged)
    check_output(found.model, found.task)
    assert found.task.num_outputs == 4


def test_wrappers_are_taken_off_everywhere_and_it_is_said():
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(4, 4)
    model = nn.DataParallel(nn.Sequential(torch.compile(inner), head))
    found = given_run(model, (X, Y), (X, Y), (X, Y), Judging())
    assert [type(module).__name__ for module in found.model.modules()] == [
        "Sequential", "Sequential", "Conv2d", "AdaptiveAvgPool2d", "Flatten", "Linear",
    ]  # fmt: skip
    assert found.notes[:2] == (
        "the model is taken out of its DataParallel", "the model is taken out of its torch.compile",
    )  # fmt: skip
    assert torch.equal(found.model(X), head(inner(X)))
