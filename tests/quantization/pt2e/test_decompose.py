"""Operators written as others: the same values, and parameters that still learn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.quantization.pt2e.decompose import rewrite
from tests.zoo import randomize


class Tokens(nn.Module):
    """A class token before, and a register behind, the positions of a map ``(N, C, L)``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(0)))
        self.register_buffer("last", torch.full((2, 2, 6), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(x), -1, -1), x, self.last], 1)


class Of(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def rewritten(model: nn.Module, inputs: Tensor) -> torch.fx.GraphModule:
    graph = torch.export.export(model.eval(), (inputs,)).module()
    assert isinstance(graph, torch.fx.GraphModule)
    rewrite(graph)
    graph.graph.lint()
    return graph


def targets(graph: torch.fx.GraphModule) -> set[str]:
    return {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}


def without_weights() -> nn.Module:
    norm = nn.BatchNorm2d(6, affine=False)
    norm.load_state_dict({**norm.state_dict(), "running_mean": torch.arange(6.0), "running_var": torch.arange(1.0, 7)})
    return norm


@pytest.mark.parametrize(("model", "expected"), [
    (Of(lambda x: 2 * x + 1 - (x - 3)), {"aten.mul.Tensor", "aten.add.Tensor", "aten.sub.Tensor"}),
    (Of(lambda x: 1 - x / 4), {"aten.mul.Tensor", "aten.sub.Tensor"}),
    (Of(lambda x: x**2), {"aten.mul.Tensor"}),
    (Of(lambda x: x**3), {"aten.pow.Tensor_Scalar"}),
    (Of(lambda x: x / x.exp()), {"aten.div.Tensor", "aten.exp.default"}),
    (Of(lambda x: torch.add(x, 1, alpha=2)), {"aten.add.Tensor"}),
    (Of(lambda x: torch.rsub(x, 1, alpha=2)), {"aten.rsub.Scalar"}),
    (Of(lambda x: x / 1000), {"aten.div.Tensor"}),
    (Of(lambda x: x.square().float()), {"aten.mul.Tensor"}),
    (Of(lambda x: x.unbind(1)[2] - x.unbind()[0][2]), {"aten.select.int", "aten.sub.Tensor"}),
    (Of(lambda x: torch.stack([x, x], -1)), {"aten.cat.default", "aten.unsqueeze.default"}),
    (nn.SiLU(), {"aten.mul.Tensor", "aten.sigmoid.default"}),
    (nn.Hardsigmoid(), {"aten.add.Tensor", "aten.hardtanh.default", "aten.mul.Tensor"}),
    (nn.PReLU(6), {"aten.relu.default", "aten.sub.Tensor", "aten.mul.Tensor", "aten.add.Tensor"}),
    (nn.PReLU(), {"aten.relu.default", "aten.sub.Tensor", "aten.mul.Tensor", "aten.add.Tensor"}),
    (randomize(nn.BatchNorm2d(6)), {"aten.conv2d.default"}),
    (without_weights(), {"aten.conv2d.default"}),
])  # fmt: skip
def test_the_values_are_the_same(model, expected):
    inputs = 3 * torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    graph = rewritten(model, inputs)
    assert targets(graph) == expected
    with torch.no_grad():
        torch.testing.assert_close(graph(inputs), model(inputs), rtol=1e-5, atol=1e-5)


def test_a_batch_norm_is_a_convolution_or_on_features_a_product_and_a_sum():
    inputs = torch.randn(4, 6, 5)
    norm = randomize(nn.BatchNorm1d(6))
    graph = rewritten(norm, inputs)
    assert targets(graph) == {"aten.conv1d.default"}
    with torch.no_grad():
        torch.testing.assert_close(graph(inputs), norm(inputs), rtol=1e-5, atol=1e-5)
    # Not one batch norm may be left, or torchao looks for convolutions with batch norms for minutes.
    graph = rewritten(norm, inputs[..., 0])
    assert targets(graph) == {"aten.mul.Tensor", "aten.add.Tensor"}
    with torch.no_grad():
        torch.testing.assert_close(graph(inputs[..., 0]), norm(inputs[..., 0]), rtol=1e-5, atol=1e-5)


def test_what_was_changed_in_place_is_read_as_it_is_afterwards():
    def twice(x: Tensor) -> Tensor:
        y = x + 0
        z = F.silu(y, inplace=True)
        return y * F.relu_(z) + y

    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    graph = rewritten(Of(twice), inputs)
    torch.testing.assert_close(graph(inputs), F.relu(F.silu(inputs)).square() + F.relu(F.silu(inputs)))
    assert "aten.relu_.default" in targets(graph)
    assert "aten.silu_.default" not in targets(graph)


def test_what_was_learned_goes_on_learning_and_nothing_is_left_behind():
    model = nn.Sequential(randomize(nn.BatchNorm2d(6)), nn.PReLU(6)).eval()
    inputs = torch.randn(4, 6, 5, 5)
    graph = rewritten(model, inputs)
    assert sorted(tuple(p.shape) for p in graph.parameters()) == [(6,), (6, 1, 1), (6, 1, 1, 1)]
    assert not list(graph.buffers())
    F.mse_loss(graph(inputs), inputs).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in graph.parameters())


def test_a_norms_numbers_learn_as_its_weight_did():
    norm, inputs = randomize(nn.BatchNorm2d(6)).eval(), torch.randn(4, 6, 5, 5)
    graph = rewritten(norm, inputs)
    # Of the same function of both; a step r on the weight g moves g / sqrt(v + e) by r / sqrt(v + e).
    for model in (norm, graph):
        model(inputs).square().mean().backward()
    (numbers,) = [parameter for parameter in graph.parameters() if parameter.dim() == 4]
    # The shift's own part goes to the bias, as it is a parameter of its own here.
    own = norm.weight.grad + norm.bias.grad * norm.running_mean / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(numbers.grad.flatten(), own / (norm.running_var + norm.eps).sqrt())


def test_a_joined_constant_is_added_where_the_others_are_padded():
    inputs = torch.randn(2, 6, 3, 3)
    model = Tokens()
    graph = rewritten(model, inputs)
    assert "aten.cat.default" not in targets(graph)
    assert torch.equal(graph(inputs), model(inputs))
    graph(inputs)[:, 0].sum().backward()
    assert torch.equal(graph.get_parameter("first").grad, torch.full((1, 1, 6), 2.0))


def test_a_concatenation_of_values_stays():
    graph = rewritten(Of(lambda x: torch.cat([x, x.exp()], 1)), torch.randn(2, 3))
    assert "aten.cat.default" in targets(graph)
