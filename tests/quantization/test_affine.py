"""Uniform quantization: values by hand, torch's own fake quantization as a reference, ranges, buckets, bad weights."""

from __future__ import annotations

import pytest
import torch

from pfray.errors import ConfigError, WeightsError
from pfray.quantization import affine
from pfray.quantization.granularity import bucket_count, check_finite, spread


def relative_error(weight: torch.Tensor, quantized: torch.Tensor) -> float:
    """Squared error over the weight's own square: 0 where nothing is lost."""
    square = weight.double().square().sum().item()
    return (weight - quantized).double().square().sum().item() / square if square else 0.0


def quantized(weight: torch.Tensor, bits: int, count: int = 1, **how) -> torch.Tensor:
    low, step = affine.fit(weight, bits, count, **how)
    return affine.quantize(weight, low, step, bits)


def error(weight: torch.Tensor, bits: int, count: int = 1, **how) -> float:
    return relative_error(weight, quantized(weight, bits, count, **how))


def test_two_bits_by_hand():
    # a = 3, b = -1: levels -1, 0, 1, 2.
    weight = torch.tensor([-1.0, -0.4, 0.6, 1.4, 2.0])
    low, step = affine.fit(weight, 2, method="min_max")
    assert (low.tolist(), step.tolist()) == ([-1.0], [1.0])
    assert affine.encode(weight, low, step, 2).tolist() == [0, 1, 2, 2, 3]
    assert quantized(weight, 2, method="min_max").tolist() == [-1, 0, 1, 1, 2]


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_formula_of_the_paper(bits):
    weight = torch.randn(500, generator=torch.Generator().manual_seed(0))
    b, a, levels = weight.min(), weight.max() - weight.min(), 2**bits - 1
    expected = a * torch.round(levels * (weight - b) / a) / levels + b
    found = quantized(weight, bits, method="min_max")
    assert torch.allclose(found, expected, atol=1e-6)
    assert len(found.unique()) <= 2**bits
    assert (found - weight).abs().max() <= a / levels / 2 + 1e-6


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_is_what_torch_does_with_a_zero_point_of_zero_by_channel(bits):
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    half = 2 ** (bits - 1)
    scale = weight.abs().flatten(1).amax(1) / (half - 1)
    expected = torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros(6, dtype=torch.int32), 0, -half, half - 1
    )
    found = quantized(weight, bits, 6, symmetric=True, method="min_max")
    assert torch.allclose(found, expected, atol=1e-6)
    assert (quantized(torch.cat([weight, torch.zeros_like(weight)], 1), bits, 6, symmetric=True)[:, 4:] == 0).all()


def test_affine_is_what_torch_does_where_the_lowest_level_is_a_multiple_of_the_step():
    weight = torch.tensor([[-0.5, 0.3], [0.26, 1.0]])
    expected = torch.fake_quantize_per_tensor_affine(weight, 0.1, 5, 0, 15)
    assert torch.allclose(quantized(weight, 4, method="min_max"), expected, atol=1e-6)


def test_the_least_squared_error_is_least_and_narrow_widths_gain_most():
    weight = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    gains = [error(weight, k, 64, method="min_max") / error(weight, k, 64, method="mse") for k in range(1, 9)]
    assert min(gains) >= 1.0
    assert gains[0] > 5
    # Of a normal distribution no two levels can do better than an error of 1 - 2 / pi = 0.363.
    assert 0.3 < error(weight, 1, 64) < 0.4


def test_a_percentile_leaves_outliers_out():
    weight = torch.cat([torch.linspace(-1, 1, 1001), torch.tensor([100.0, -100.0])])
    low, step = affine.fit(weight, 8, method="percentile", percentile=99.5)
    assert -1.01 < low.item() < -0.98
    assert low.item() + 255 * step.item() == pytest.approx(-low.item(), abs=1e-4)
    assert quantized(weight, 8, method="percentile", percentile=100).max() == pytest.approx(100, abs=1e-3)


def test_buckets_are_runs_of_equal_length_and_smaller_ones_lose_less():
    weight = (
        torch.randn(10, 7, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 0, 10)[:, None, None]
    )
    assert [bucket_count(weight, kind, 50) for kind in ("tensor", "channel", "run")] == [1, 10, 5]
    assert error(weight, 3, 1) > 2 * error(weight, 3, 10)
    # 210 weights in 4 runs of 53, the last of 51.
    low, _ = affine.fit(weight, 3, 4, method="min_max")
    flat = weight.flatten()
    assert low.tolist() == [part.min().item() for part in (flat[:53], flat[53:106], flat[106:159], flat[159:])]
    assert spread(low, weight).flatten()[[0, 52, 53, 158, 159, 209]].tolist() == low[[0, 0, 1, 2, 3, 3]].tolist()


@pytest.mark.parametrize("how", [{"symmetric": True}, {}])
@pytest.mark.parametrize("method", ["min_max", "percentile", "mse"])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_constant_and_all_zero_buckets_are_exact(bits, method, how):
    weight = torch.tensor([[0.0] * 5, [-0.3] * 5, [0.7] * 5, [1e-30] * 5])
    found = quantized(weight, bits, 4, method=method, **how)
    assert torch.allclose(found, weight, rtol=1e-6, atol=0)
    assert (found[0] == 0).all()
    assert relative_error(weight[:1], found[:1]) == 0.0


@pytest.mark.parametrize("bits", [0, 33, 9, -1, 2.5])
def test_a_width_that_no_weight_can_have_is_refused(bits):
    with pytest.raises(ConfigError, match=r"bits: .* is not allowed; a weight has 1 to 8 bits\. Remedy"):
        affine.fit(torch.ones(4), bits)


def test_weights_that_are_not_numbers_are_refused_by_name():
    check_finite("conv", torch.ones(3))
    with pytest.raises(WeightsError, match=r"conv: 2 of 3 weights are NaN or infinite.*Remedy"):
        check_finite("conv", torch.tensor([1.0, torch.nan, torch.inf]))


def test_the_gradient_of_fake_quantization_is_one_inside_the_range_and_zero_outside():
    values = torch.tensor([-2.0, 0.1, 0.9, 5.0], requires_grad=True)
    found = affine.fake_quantize(values, torch.tensor([0.0]), torch.tensor([0.5]), 2)
    found.sum().backward()
    assert found.tolist() == [0.0, 0.0, 1.0, 1.5]
    assert values.grad.tolist() == [0, 1, 1, 0]
    assert (
        affine.fake_quantize(values.bfloat16(), torch.tensor([0.0]), torch.tensor([0.5]), 2).dtype == torch.bfloat16
    )
