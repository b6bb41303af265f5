"""Batch norm folded into the layer before it changes nothing but the number of operations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pfray.models.mobilenet import mobilenet_v1
from pfray.models.resnet import resnet20
from pfray.nn.modes import place
from pfray.quantization.bn_folding import fold, foldable_norms
from tests.zoo import ZOO, randomize


def norms_of(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def folded(model: nn.Module, example: Tensor) -> nn.Module:
    model = copy.deepcopy(model)
    fold(model, foldable_norms(model, example))
    return model


def apart(model: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    """The largest difference of the outputs, relative to the largest output."""
    with torch.inference_mode():
        expected, found = model(inputs), other(inputs)
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_a_layer_worked_by_hand():
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0)).eval()
    with torch.no_grad():
        model[0].weight.fill_(3.0)
        model[0].bias.fill_(1.0)
        model[1].running_mean.fill_(2.0)
        model[1].running_var.fill_(4.0)
        model[1].weight.fill_(5.0)
        model[1].bias.fill_(7.0)
    layer = folded(model, torch.ones(1, 1))[0]
    # 5 (3 x + 1 - 2) / 2 + 7 = 7.5 x + 4.5
    assert (layer.weight.item(), layer.bias.item()) == (7.5, 4.5)


@pytest.mark.parametrize(("make", "shape"), [
    (resnet20, (3, 32, 32)),
    (lambda: mobilenet_v1(width=0.5), (3, 64, 64)),
    (lambda: nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4, bias=False),
                           nn.BatchNorm1d(4, affine=False)), (6,)),
], ids=["resnet20", "mobilenet", "linear"])  # fmt: skip
def test_all_norms_go_and_the_outputs_stay_the_same_to_rounding(make, shape):
    torch.manual_seed(0)
    model = place(randomize_any(make()).eval(), "cpu")
    inputs = torch.randn(8, *shape)
    without = folded(model, inputs[:1])
    assert norms_of(model) > 1
    assert norms_of(without) == 0
    assert apart(model, without, inputs) < 1e-5
    names, exact = foldable_norms(model, inputs[:1]), copy.deepcopy(model).double()
    fold(exact, names)
    assert apart(model.double(), exact, inputs.double()) < 1e-12


def test_steps_on_folded_weights_are_steps_on_the_weights_in_front_of_their_norms():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    )  # fmt: skip
    model = randomize(model).eval().double()
    inputs, targets = torch.randn(6, 2, 8, 8).double(), torch.randn(6, 4, 4, 4).double()
    names = foldable_norms(model, inputs[:1])
    without, before = folded(model, inputs[:1]), model[0].weight.detach().clone()
    for each in (model, without):
        optimizer = torch.optim.SGD([each[0].weight, each[3].weight], lr=0.05, momentum=0.9, weight_decay=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            functional.mse_loss(each(inputs), targets).backward()
            optimizer.step()
    assert (model[0].weight - before).abs().max() > 0.01
    fold(model, names)
    for layer in (0, 3):
        assert torch.allclose(model[layer].weight, without[layer].weight, rtol=1e-10, atol=1e-12)


def randomize_any(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is None:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            randomize(nn.Sequential(module))
    return model


@pytest.mark.parametrize("name", ZOO)
def test_whatever_the_wiring_the_outputs_stay_the_same(name):
    model, inputs = ZOO[name]()
    if len(inputs) > 1:
        pytest.skip("a task's models take one input")
    try:
        expected = model(*inputs)
    except Exception:
        pytest.skip("it does not run")
    without = folded(model, inputs[0])
    if isinstance(expected, Tensor):
        assert apart(model, without, inputs[0]) < 1e-4


def test_the_activation_inside_a_norm_takes_its_place():
    model, (example,) = ZOO["norms_with_activation"]()
    norms = foldable_norms(model, example)
    assert norms == {"0": "1", "2": "3", "6": "7"}  # the group norm has no statistics
    without = folded(model, example)
    assert [type(without[i]) for i in (1, 3, 7)] == [nn.ReLU, nn.Hardswish, nn.Identity]
    assert norms_of(without) == 0
    assert apart(model, without, 3 * torch.randn(4, 3, 12, 12)) < 1e-5


class Watched(nn.Module):
    """The second convolution's output is read by its batch norm and by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.bn1(self.conv1(x)).relu())
        return self.bn2(y) + y


class Tied(nn.Module):
    """Two layers of one weight, each with a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.bn1, self.bn2 = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.two(self.bn1(self.one(x))))


def test_a_norm_whose_input_is_used_elsewhere_too_stays():
    torch.manual_seed(0)
    model, inputs = randomize(Watched()).eval(), torch.randn(4, 2, 8, 8)
    assert foldable_norms(model, inputs[:1]) == {"conv1": "bn1"}
    assert apart(model, folded(model, inputs[:1]), inputs) < 1e-5


def test_norms_behind_a_shared_weight_stay():
    torch.manual_seed(0)
    model = randomize(Tied()).eval()
    assert foldable_norms(model, torch.randn(1, 3)) == {}


def test_looking_changes_neither_the_model_nor_its_mode():
    model = randomize(resnet20())
    model.train()
    before = copy.deepcopy(model.state_dict())
    assert len(foldable_norms(model, torch.randn(1, 3, 32, 32))) == 19
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("made", [lambda y: y.argmax(1), lambda y: y[y[:, 0, 0, 0] > 1e9]], ids=["classes", "nothing"])
def test_without_a_float_in_the_outputs_nothing_is_proven_and_all_norms_stay(made):
    class Chosen(Watched):
        def forward(self, x: Tensor) -> Tensor:
            return made(super().forward(x))

    torch.manual_seed(0)
    assert foldable_norms(randomize(Chosen()).eval(), torch.randn(4, 2, 8, 8)) == {}
