"""The Fisher information by hand, against the Hessian, and what it predicts of a change."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pfray.data import digits
from pfray.quantization.fisher import fisher, lost_share
from pfray.task import Split
from tests.small import make_task


@pytest.fixture
def task():
    return make_task(shape=(4, 1, 1), classes=3, samples=6000)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def by_hand(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Of a softmax regression: F_kj = E[p_k (1 - p_k) x_j^2]."""
    chances = model(inputs).softmax(1).detach()
    return ((chances * (1 - chances)).T @ inputs.flatten(1).square()) / len(inputs)


def test_it_is_that_of_a_softmax_regression(model, task):
    found = fisher(model, ["1"], task, images=4000)["1"]
    expected = by_hand(model, task.normalize(task.train.inputs[:4000]))
    # One draw of a label for every input, so up to a sampling error.
    assert torch.allclose(found, expected, rtol=0.3, atol=0)
    assert found.sum().item() == pytest.approx(expected.sum().item(), rel=0.05)


def test_a_small_change_moves_the_predictions_as_far_as_it_says(model, task):
    inputs = task.normalize(task.train.inputs[:4000])
    moved, change = copy.deepcopy(model), torch.zeros(3, 4)
    change[1, 2] = 0.05
    with torch.no_grad():
        moved[1].weight += change
        distance = F.kl_div(moved(inputs).log_softmax(1), model(inputs).log_softmax(1), reduction="batchmean",
                            log_target=True).item()  # fmt: skip
    share = lost_share(by_hand(model, inputs), change)
    assert -math.log1p(-share) == pytest.approx(distance, rel=0.05)


def test_shares_that_are_left_multiply():
    information, change = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.5])
    whole = lost_share(information, change)
    parts = [lost_share(information[i : i + 1], change[i : i + 1]) for i in range(2)]
    assert whole == pytest.approx(1 - math.exp(-0.5 * (2 + 1)))
    assert 1 - whole == pytest.approx((1 - parts[0]) * (1 - parts[1]))


def test_the_model_and_the_random_numbers_stay_as_they_are(model, task):
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    one, other = (fisher(model.train(), ["1"], task)["1"] for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert model[1].weight.grad is None


def test_without_a_cross_entropy_the_targets_take_the_place_of_labels_drawn(model, task):
    squares = replace(task, loss=lambda outputs, targets: F.mse_loss(outputs[:, 0], targets.float()))
    found = fisher(model, ["1"], squares)["1"]
    assert found[0].min() > 0
    assert not found[1:].any()


def test_a_layer_that_no_prediction_depends_on_has_none(task):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model.spare = nn.Linear(4, 3)
    model.forward = lambda inputs: model[1](model[0](inputs))
    assert not fisher(model, ["spare"], task)["spare"].any()


def test_a_frozen_network_and_one_of_nans_have_one_too():
    task = digits.build()
    model = nn.Sequential(nn.Flatten(), nn.Linear(task.train.inputs[0].numel(), 10)).requires_grad_(False)
    assert fisher(model, ["1"], task, images=20)["1"].max() > 0
    with torch.no_grad():
        model[1].weight.fill_(float("nan"))
    assert fisher(model, ["1"], task, images=20)["1"].isnan().any()


def test_of_dense_outputs_it_is_the_mean_over_all_places():
    task = make_task(shape=(4, 2, 3), classes=3, samples=6000)
    split = Split(task.train.inputs, torch.zeros(6000, 2, 3, dtype=torch.long))
    dense = replace(task, train=split, validation=split, test=split, score=lambda outputs, targets: outputs[:, 0, 0, 0])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 3, 1))
    found = fisher(model, ["0"], dense, images=6000)["0"].flatten(1)
    rows = dense.normalize(dense.train.inputs).movedim(1, -1).reshape(-1, 4)
    layer = nn.Linear(4, 3)
    layer.load_state_dict({"weight": model[0].weight.detach().flatten(1), "bias": model[0].bias.detach()})
    expected = by_hand(layer, rows)
    assert torch.allclose(found, expected, rtol=0.3, atol=0)
    assert found.sum().item() == pytest.approx(expected.sum().item(), rel=0.05)


def test_of_several_outputs_it_is_that_of_the_one_the_loss_reads(model, task):
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = model[1]

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"features": x, "logits": self.layer(x.flatten(1))}

    found = fisher(Both(), ["layer"], replace(task, output="logits"), images=100)["layer"]
    assert torch.equal(found, fisher(model, ["1"], task, images=100)["1"])
