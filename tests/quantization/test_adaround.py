"""AdaRound on small layers: the optimum of all roundings by brute force, each part of the equations by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pfray.quantization.adaround import Reconstruction, adaround, products, rectified_sigmoid
from pfray.quantization.qparams import QParams


def reconstruction(rows: Tensor, weight: Tensor, activation=lambda values: values, groups: int = 1) -> Reconstruction:
    """To give what the weight gives on the rows."""
    outputs = len(weight)
    goal = activation(products(rows, weight, groups))
    return Reconstruction(rows, torch.zeros(len(rows), outputs), torch.ones(outputs), goal, activation, groups)


def brute_force(problem: Reconstruction, weight: Tensor, qparams: QParams) -> tuple[float, Tensor]:
    """(least error, codes) of all 2^n ways to round each weight down or up."""
    lower = ((weight - qparams.low[0]) / qparams.step[0]).floor()
    best = (float("inf"), lower)
    for ups in itertools.product((0.0, 1.0), repeat=weight.numel()):
        codes = lower + torch.tensor(ups).view_as(weight)
        error = problem.error(qparams.decode(codes)).item()
        if error < best[0]:
            best = (error, codes)
    return best


def test_two_weights_by_hand_whose_nearest_levels_are_not_the_best():
    """Both inputs are always equal, so only the sum of the weights counts: 0.4 + 0.3 = 0.7 is nearer to 1 + 0 than to
    0 + 0, which the nearest levels are."""
    rows = torch.linspace(-1, 1, 64)[:, None].expand(64, 2).contiguous()
    weight, qparams = torch.tensor([[0.4, 0.3]]), QParams(2, torch.tensor([-1.0]), torch.tensor([1.0]))
    problem = reconstruction(rows, weight)
    assert qparams.encode(weight).tolist() == [[1, 1]]
    codes = adaround(weight, qparams, problem, 400)
    assert sorted(codes[0].tolist()) == [1, 2]
    mean_square = rows[:, 0].square().mean().item()
    assert problem.error(qparams.decode(codes)).item() == pytest.approx(0.3**2 * mean_square, rel=1e-4)
    assert problem.error(qparams.quantize(weight)).item() == pytest.approx(0.7**2 * mean_square, rel=1e-4)


@pytest.mark.parametrize("activation", [lambda values: values, torch.relu], ids=["linear", "relu"])
# Layers whose nearest levels have more than five times the least error; where those are nearly the best, they stay.
@pytest.mark.parametrize("seed", [0, 1, 4])
def test_it_finds_the_best_of_all_roundings_or_nearly(activation, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(512, 3, generator=generator) @ torch.randn(3, 8, generator=generator)
    rows += 0.3 * torch.randn(512, 8, generator=generator)
    weight = torch.rand(1, 8, generator=generator) * 2.8 - 1.4
    qparams = QParams(2, torch.tensor([-1.5]), torch.tensor([1.0]))
    problem = reconstruction(rows, weight, activation)
    least, _ = brute_force(problem, weight, qparams)
    nearest = problem.error(qparams.quantize(weight)).item()
    found = problem.error(qparams.decode(adaround(weight, qparams, problem, 600))).item()
    assert nearest > 5 * least
    assert least <= found <= least + 0.2 * (nearest - least)


def test_the_rectified_sigmoid_reaches_both_ends():
    values = rectified_sigmoid(torch.tensor([-10.0, 0.0, 10.0]))
    assert values.tolist() == [0.0, 0.5, 1.0]
    # sigmoid(ln 3) = 3/4, and 1.2 * 3/4 - 0.1 = 0.8
    assert rectified_sigmoid(torch.tensor(3.0).log()).item() == pytest.approx(0.8)


def test_groups_read_their_own_columns_as_a_convolution_in_groups_does():
    torch.manual_seed(0)
    layer = torch.nn.Conv1d(6, 4, 3, groups=2, bias=False)
    inputs = torch.randn(5, 6, 3)
    expected = layer(inputs)[..., 0]
    assert torch.allclose(products(inputs.flatten(1), layer.weight.flatten(1), 2), expected, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 4])
def test_codes_are_neighbours_of_the_weights_and_never_worse_than_the_nearest(groups):
    torch.manual_seed(0)
    rows = torch.randn(300, 36)
    weight = torch.randn(4, rows.shape[1] // groups)
    qparams = QParams(3, torch.full((4,), -1.5), torch.full((4,), 0.4))
    problem = reconstruction(rows, weight, torch.relu, groups)
    codes = adaround(weight, qparams, problem, 300)
    exact = ((weight + 1.5) / 0.4).clamp(0, 7)
    assert ((codes >= 0) & (codes <= 7) & (codes == codes.round())).all()
    inside = (exact > 0) & (exact < 7)
    assert ((codes - exact).abs() < 1)[inside].all()
    assert problem.error(qparams.decode(codes)) <= problem.error(qparams.quantize(weight))


def test_an_exact_weight_and_a_constant_bucket_stay_as_they_are():
    rows = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([[0.0, 1.0], [0.7, 0.7]])
    qparams = QParams(2, torch.tensor([-1.0, 0.7]), torch.tensor([1.0, 0.0]))
    codes = adaround(weight, qparams, reconstruction(rows, weight), 50)
    assert torch.equal(qparams.decode(codes), weight)


def test_the_same_problem_gives_the_same_codes():
    torch.manual_seed(0)
    rows, weight = torch.randn(200, 20), torch.randn(5, 20)
    qparams = QParams(2, torch.full((5,), -1.5), torch.full((5,), 1.0))
    first, again = (adaround(weight, qparams, reconstruction(rows, weight), 100) for _ in range(2))
    assert torch.equal(first, again)
