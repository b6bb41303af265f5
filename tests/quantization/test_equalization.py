"""Cross-layer equalization: the function stays, the ranges become equal, and only where the function allows it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pfray.models.lenet import lenet
from pfray.models.mobilenet import mobilenet_v1
from pfray.quantization.bn_folding import foldable_norms, folded
from pfray.quantization.equalization import equalize, equalizing_scales, ranges
from tests.small import difference
from tests.zoo import randomize


def equalized(model: nn.Module, example: Tensor) -> tuple[nn.Module, dict[tuple[str, str], Tensor]]:
    scales = equalizing_scales(model, example)
    own = copy.deepcopy(model)
    equalize(own, scales)
    return own, scales


def test_two_layers_by_hand():
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[8.0], [-1.0]]))
        model[0].bias.copy_(torch.tensor([4.0, 2.0]))
        model[2].weight.copy_(torch.tensor([[0.5, 9.0]]))
    own, scales = equalized(model, torch.ones(1, 1))
    # sqrt(8 * 0.5) / 0.5 = 4, and sqrt(1 * 9) / 9 = 1/3: both sides have the ranges 2 and 3.
    assert scales[("0", "2")].tolist() == pytest.approx([4, 1 / 3])
    assert own[0].weight.flatten().tolist() == pytest.approx([2, -3])
    assert own[0].bias.tolist() == pytest.approx([1, 6])
    assert own[2].weight.flatten().tolist() == pytest.approx([2, 3])


MODELS = {
    "depthwise": (lambda: mobilenet_v1(width=0.25), (3, 32, 32), 26),
    "flattened": (lambda: lenet(in_channels=1), (1, 32, 32), 4),
    "groups": (lambda: nn.Sequential(nn.Conv2d(2, 8, 1), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3, groups=2),
                                     nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)), (2, 6, 6), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_function_stays_and_the_ranges_of_every_pair_become_equal(name):
    make, shape, pairs = MODELS[name]
    torch.manual_seed(0)
    model = randomize(make()).eval()
    inputs = torch.randn(4, *shape)
    whole = folded(model, foldable_norms(model, inputs[:1]))
    own, scales = equalized(whole, inputs[:1])
    assert len(scales) >= pairs
    assert difference(own, whole, inputs) < 1e-5
    before, after = (max(spread_of(net, pair) for pair in scales) for net in (whole, own))
    assert after < 0.02 < 0.5 < before


def spread_of(model: nn.Module, pair: tuple[str, str]) -> float:
    """The largest relative difference of a channel's two ranges."""
    made, read = ranges(model, pair)
    both = (made > 0) & (read > 0)
    return ((made - read).abs() / torch.maximum(made, read))[both].max().item()


@pytest.mark.parametrize("between", [nn.ReLU6(), nn.Sigmoid(), nn.GELU(), nn.BatchNorm2d(4)])
def test_no_pair_where_the_function_between_is_not_homogeneous(between):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), between, nn.Conv2d(4, 3, 1)).eval()
    assert equalizing_scales(model, torch.randn(1, 2, 4, 4)) == {}


def test_no_pair_where_another_operation_reads_the_output():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            first = torch.relu(self.one(x))
            return self.three(torch.relu(self.two(first)) + first)

    torch.manual_seed(0)
    assert equalizing_scales(Twice().eval(), torch.randn(1, 3)) == {}


def test_a_step_of_training_changes_the_function_as_it_would_have_before():
    """With one weight a layer: a step on W of the function W x is the same step on s W, divided by s."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    own, _ = equalized(model, torch.randn(1, 3))
    inputs = torch.randn(16, 3)
    for net in (model, own):
        optimizer = torch.optim.SGD(net.parameters(), 1e-3)
        net(inputs).square().sum().backward()
        optimizer.step()
    assert difference(own, model, inputs) < 1e-5


def test_a_dead_channel_stays_and_gives_no_infinite_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[2].weight[:, 2] = 0.0
    own, scales = equalized(model, torch.randn(1, 3))
    assert scales[("0", "2")][[1, 2]].tolist() == [1, 1]
    assert all(value.isfinite().all() for value in own.state_dict().values())
