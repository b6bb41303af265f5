"""Codebooks: by hand, scikit-learn's k-means as a reference, buckets, and the gradient of a codeword."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans

from pfray.errors import ConfigError
from pfray.quantization import affine, codebook


def coded(weight: torch.Tensor, bits: int, count: int = 1, **how) -> torch.Tensor:
    words = codebook.fit(weight, bits, count, **how)
    return codebook.decode(codebook.encode(weight, words), words)


def error(weight: torch.Tensor, found: torch.Tensor) -> float:
    return (weight - found).double().square().sum().item()


def test_two_clusters_by_hand():
    weight = torch.tensor([[0.0, 5.0], [1.0, 6.0], [4.0, 0.5]])
    words = codebook.fit(weight, 1)
    assert words.tolist() == [[0.5, 5.0]]
    codes = codebook.encode(weight, words)
    assert codes.tolist() == [[0, 1], [0, 1], [1, 0]]
    assert codebook.decode(codes, words).tolist() == [[0.5, 5.0], [0.5, 5.0], [5.0, 0.5]]


def test_quantiles_and_even_spacing_by_hand():
    weight = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 30.0])
    assert codebook.fit(weight, 2, method="uniform").tolist() == [[0.0, 10.0, 20.0, 30.0]]
    assert codebook.fit(weight, 2, method="quantile").tolist() == [[1.0, 3.0, 5.0, 30.0]]


@pytest.mark.parametrize(("bits", "worse"), [(1, 1.001), (2, 1.001), (3, 1.005), (4, 1.02), (5, 1.05)])
@pytest.mark.parametrize("tails", ["normal", "mixed"])
def test_the_error_is_that_of_the_best_of_ten_runs_of_scikit_learn(bits, worse, tails):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2000, generator=generator)
    if tails == "mixed":
        weight[::3] *= 3
    reference = KMeans(2**bits, n_init=10, random_state=0).fit(weight[:, None].numpy()).inertia_
    assert error(weight, coded(weight, bits)) <= worse * reference


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_k_means_loses_less_than_its_starts_and_than_even_levels(bits):
    weight = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    best = error(weight, coded(weight, bits))
    assert best < min(error(weight, coded(weight, bits, method=method)) for method in ("quantile", "uniform"))
    assert best < error(weight, affine.quantize(weight, *affine.fit(weight, bits), bits))


def test_codewords_are_the_means_of_their_weights_weighed_by_importance():
    weight = torch.tensor([[0.0, 1.0, 5.0], [4.0, 6.0, 0.5]])
    importance = torch.tensor([[3.0, 2.0, 2.0], [0.0, 3.0, 2.0]])
    low, high = codebook.fit(weight, 1, importance=importance)[0].tolist()
    # 0, 1 and 0.5 weigh 3, 2 and 2; 5, 4 and 6 weigh 2, half of the mean of 2, and 3.
    assert low == pytest.approx((0 * 3 + 1 * 2 + 0.5 * 2) / 7)
    assert high == pytest.approx((5 * 2 + 4 * 1 + 6 * 3) / 6)


def test_of_a_row_where_nothing_matters_all_weights_matter_the_same():
    weight = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    importance = torch.zeros_like(weight)
    importance[1] = 7.0
    assert torch.equal(codebook.fit(weight, 2, 2, importance=importance), codebook.fit(weight, 2, 2))


@pytest.mark.parametrize("count", [1, 40, 7])
def test_the_weighed_error_is_lower_with_importance_and_the_plain_one_without(count):
    weight = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    importance = weight.clamp_min(0) ** 2
    words = [codebook.fit(weight, 2, count, importance=i) for i in (importance, None)]
    errors = [(weight - codebook.decode(codebook.encode(weight, own), own)).double().square() for own in words]
    weighed = [(importance * own).sum() for own in errors]
    assert weighed[0] < 0.9 * weighed[1]
    assert errors[1].sum() < errors[0].sum()


def test_buckets_have_their_own_codebooks_and_the_same_ones_as_alone():
    weight = torch.randn(5, 31, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 5)[:, None]
    words = codebook.fit(weight, 2, 5)
    for row, own in zip(weight, words, strict=True):
        assert torch.equal(codebook.fit(row, 2)[0], own)
    # 155 weights in runs of 39, the last of 38.
    ragged = codebook.fit(weight, 2, 4)
    assert torch.equal(ragged[3], codebook.fit(weight.flatten()[117:], 2)[0])
    found = coded(weight, 2, 4).flatten()
    assert torch.equal(found[117:], coded(weight.flatten()[117:], 2))


@pytest.mark.parametrize("method", ["kmeans", "quantile", "uniform"])
def test_constant_buckets_and_more_codewords_than_weights_are_exact(method):
    weight = torch.tensor([[0.0, 0.0, 0.0], [-0.3, -0.3, -0.3]])
    assert torch.equal(coded(weight, 3, 2, method=method), weight)
    if method == "kmeans":
        few = torch.tensor([[0.1, 0.7, -3.0]])
        assert torch.allclose(coded(few, 4), few)


def test_a_codewords_gradient_is_the_sum_of_its_weights_gradients():
    words = torch.tensor([[0.0, 1.0], [10.0, 20.0]])
    codes = torch.tensor([[0, 1, 1], [1, 1, 0]])
    gradients = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert codebook.sum_by_codeword(gradients, codes, words).tolist() == [[1.0, 5.0], [6.0, 9.0]]
    learned = words.clone().requires_grad_()
    (learned.gather(1, codes) * gradients).sum().backward()
    assert torch.equal(learned.grad, codebook.sum_by_codeword(gradients, codes, words))


@pytest.mark.parametrize("bits", [0, 33])
def test_a_width_that_no_weight_can_have_is_refused(bits):
    with pytest.raises(ConfigError, match="a weight has 1 to 8 bits"):
        codebook.fit(torch.ones(4), bits)
