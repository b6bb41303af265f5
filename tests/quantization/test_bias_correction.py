"""Bias correction: after it the outputs of a quantized layer are right on average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from learners.non_uniform_quant import NonUniformQuant
from learners.uniform_quant import UniformQuant
from pfray.quantization.bias_correction import mean_error, mean_inputs
from pfray.task import Split, Task
from tests.small import make_task
from tests.zoo import conv, head, randomize


def test_a_layer_by_hand():
    layer = nn.Linear(2, 1)
    # 0.5 * 3 - 2 * 1
    assert mean_error(layer, torch.tensor([[0.5, -2.0]]), torch.tensor([3.0, 1.0])).item() == -0.5


@pytest.mark.parametrize(("make", "shape"), [
    (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), (4, 7, 7)),
    (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 6, 6)),
    (lambda: nn.ConvTranspose2d(4, 5, 2, stride=2), (4, 3, 3)),
    (lambda: nn.Linear(4, 3), (7, 4)),
], ids=["conv", "depthwise", "transposed", "linear"])  # fmt: skip
def test_the_mean_error_is_that_of_all_outputs(make, shape):
    torch.manual_seed(0)
    layer, inputs = make(), torch.randn(60, *shape)
    split = Split(inputs, torch.zeros(60, dtype=torch.int64))
    means = mean_inputs(nn.Sequential(layer), ["0"], Task("noise", split, split, split, 2), 60)
    change = 0.1 * torch.randn_like(layer.weight)
    with torch.no_grad():
        before = layer(inputs)
        layer.weight += change
        error = layer(inputs) - before
    axes = [0, 1] if isinstance(layer, nn.Linear) else [0, 2, 3]
    assert torch.allclose(mean_error(layer, change, means["0"]), error.mean(axes), atol=1e-5)


@pytest.mark.parametrize("learner", [UniformQuant, NonUniformQuant])
@pytest.mark.parametrize("fold", [False, True])
def test_the_outputs_of_a_quantized_layer_are_right_on_average(learner, fold):
    torch.manual_seed(0)
    task = make_task()
    model = randomize(nn.Sequential(conv(2, 4), conv(4, 6), head(6, 3))).eval()
    settings = {"fold": fold, "images": 60}
    errors = {}
    for correct in (False, True):
        algorithm = learner(model, task, learner.settings_type(**settings, bias_correction=correct))
        own = algorithm.compress({"1.0": 1}).model
        with torch.no_grad():
            # Up to the batch norm's output, which is an identity after folding.
            found, exact = (net[1][1](net[1][0](net[0](task.train.inputs))) for net in (own.eval(), model))
        errors[correct] = (found - exact).mean((0, 2, 3)).abs().max().item()
    assert errors[True] < 1e-4 < 0.05 < errors[False]


def test_layers_that_run_twice_or_share_a_weight_are_left_out():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
            self.four = nn.Conv2d(2, 2, 1)
            self.three.weight = self.two.weight

        def forward(self, x):
            return self.four(self.three(self.two(self.one(self.one(x)))))

    assert set(mean_inputs(Twice().eval(), ["one", "two", "four"], make_task(), 60)) == {"four"}
