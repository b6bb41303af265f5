"""Channel selection and reconstruction, against scikit-learn and numpy on explicit data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from torch import Tensor

from pfray.pruning.reconstruction import lasso
from pfray.pruning.reconstruction.covariance import Moments
from pfray.pruning.reconstruction.lasso import cached_selections, lasso_selections, unit_gram
from pfray.pruning.reconstruction.lasso_path import lasso_path
from pfray.pruning.reconstruction.least_squares import lost_shares, reconstruct, ridge_factor, ridge_solve

ROWS, KERNEL, OUTPUTS = 300, 4, 5


def data(channels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Centred rows ``(R, C K)`` whose channels are alike, and weights ``(C K, O)`` of different sizes."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((ROWS, 3)) @ rng.standard_normal((3, channels * KERNEL))
    rows += rng.standard_normal(rows.shape)
    weight = rng.standard_normal((channels, KERNEL, OUTPUTS)) * rng.uniform(0.2, 2, channels)[:, None, None]
    return rows - rows.mean(0), weight.reshape(-1, OUTPUTS)


def moments(rows: np.ndarray) -> Moments:
    return Moments(torch.from_numpy(rows.T @ rows / len(rows)), torch.zeros(rows.shape[1], dtype=torch.float64))


def contributions(rows: np.ndarray, weight: np.ndarray, index: np.ndarray) -> np.ndarray:
    """``(R O, U)``: X_u W_u, one unit a column."""
    parts = []
    for unit in index:
        own = (unit[:, None] * KERNEL + np.arange(KERNEL)).ravel()
        parts.append((rows[:, own] @ weight[own]).ravel())
    return np.stack(parts, 1)


def gram(rows: np.ndarray, weight: np.ndarray, index: np.ndarray) -> np.ndarray:
    return unit_gram(moments(rows), torch.from_numpy(weight), index, rows.shape[1] // KERNEL)


def single(channels: int) -> np.ndarray:
    return np.arange(channels)[:, None]


@pytest.mark.parametrize("index", [single(6), np.array([[0, 1], [4, 3], [2, 5]]), np.array([[5], [1]])])
def test_the_gram_matrix_is_that_of_the_units_contributions(index):
    rows, weight = data(6)
    regressors = contributions(rows, weight, index)
    np.testing.assert_allclose(gram(rows, weight, index), regressors.T @ regressors / ROWS, rtol=1e-9, atol=1e-9)


def searched(regressors: np.ndarray, count: int) -> np.ndarray | None:
    """The first support of ``count`` columns below the largest alpha, found by bisection as He et al. do."""
    target = regressors.sum(1)
    low, high = 0.0, float(np.abs(regressors.T @ target).max() / len(target))
    for _ in range(60):
        fit = Lasso(alpha=(low + high) / 2, fit_intercept=False, max_iter=100_000, tol=1e-10)
        support = np.flatnonzero(fit.fit(regressors, target).coef_)
        if len(support) == count:
            return support
        low, high = (fit.alpha, high) if len(support) > count else (low, fit.alpha)
    return None


@pytest.mark.parametrize("seed", range(3))
def test_each_count_keeps_the_channels_of_a_search_on_alpha(seed):
    rows, weight = data(10, seed)
    selections = lasso_selections(gram(rows, weight, single(10)))
    regressors = contributions(rows, weight, single(10))
    found = {count: searched(regressors, count) for count in range(1, 10)}
    compared = {count: support.tolist() for count, support in found.items() if support is not None}
    assert len(compared) >= 8
    assert {count: selections[count].tolist() for count in compared} == compared


def assert_counts(selections: list[np.ndarray], units: int) -> None:
    assert len(selections) == units + 1
    for count, kept in enumerate(selections):
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert len(kept) == count
        assert set(kept.tolist()) <= set(range(units))


def test_every_count_has_exactly_as_many_units():
    for units in (1, 2, 3, 17):
        rows, weight = data(units, seed=units)
        assert_counts(lasso_selections(gram(rows, weight, single(units))), units)


def test_uncorrelated_channels_are_kept_by_what_they_contribute():
    assert [s.tolist() for s in lasso_selections(np.diag([3.0, 1.0, 4.0, 2.0]))] == [
        [], [2], [0, 2], [0, 2, 3], [0, 1, 2, 3]
    ]  # fmt: skip


def test_dead_channels_go_first():
    rows, weight = data(8)
    rows[:, 2 * KERNEL : 3 * KERNEL] = 0
    weight[5 * KERNEL : 6 * KERNEL] = 0
    selections = lasso_selections(gram(rows, weight, single(8)))
    assert_counts(selections, 8)
    assert selections[6].tolist() == [0, 1, 3, 4, 6, 7]


def test_of_channels_that_are_copies_one_stays_longer_than_the_other():
    rows, weight = data(6)
    # Channel 4 is channel 1 again, with the same weights.
    rows[:, 4 * KERNEL : 5 * KERNEL] = rows[:, KERNEL : 2 * KERNEL]
    weight[4 * KERNEL : 5 * KERNEL] = weight[KERNEL : 2 * KERNEL]
    singular = gram(rows, weight, single(6))
    assert np.linalg.matrix_rank(singular) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        selections = lasso_selections(singular)
    assert_counts(selections, 6)
    own = kept_rows(0, 1, 2, 3, 5)
    assert share(rows, weight, own, reconstruct(moments(rows), torch.from_numpy(weight), own)) < 1e-6


def test_more_units_than_samples_are_chosen_in_few_steps_and_as_many_as_samples_explain_everything():
    rng = np.random.default_rng(0)
    units, rank = 240, 60
    factors = rng.standard_normal((rank, units)) * rng.uniform(0.1, 2, units)
    matrix = (factors.T @ factors).astype(np.float32).astype(float)  # as moments are kept
    scaled = matrix / np.diag(matrix).mean() + lasso.RIDGE * np.eye(units)
    assert sum(1 for _ in lasso_path(scaled, lasso.LOWEST)) < 2 * rank
    assert sum(1 for _ in lasso_path(scaled)) > 6 * rank
    selections = lasso_selections(matrix)
    assert_counts(selections, units)
    # The first 1.1 r units span the samples.
    assert np.linalg.matrix_rank(factors[:, selections[66]]) == rank


@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), np.ones((4, 4)), np.full((4, 4), 1e-38), -1e-12 * np.eye(4)])
def test_a_gram_matrix_that_says_nothing_still_gives_every_count(matrix):
    assert_counts(lasso_selections(matrix), 4)


def test_units_that_cancel_each_other_out_still_give_every_count():
    # X_0 W_0 = - X_1 W_1, so that the output is that of unit 2 alone.
    regressors = np.array([[1.0, -1.0, 0.1], [2.0, -2.0, 0.0]])
    assert_counts(lasso_selections(regressors.T @ regressors), 3)


def test_a_group_of_more_channels_than_a_path_has_steps_by_default_is_chosen_to_the_last():
    rng = np.random.default_rng(0)
    units = 560  # of which scikit-learn would stop after 500 steps
    factors = rng.standard_normal((units, 20))
    matrix = factors @ factors.T + np.diag(rng.uniform(0.5, 30, units))
    selections = lasso_selections(matrix)
    assert_counts(selections, units)
    regressors = np.linalg.cholesky(matrix).T
    for alpha in (5e-3, 3e-3):
        fit = Lasso(alpha=alpha, fit_intercept=False, precompute=matrix, max_iter=100_000, tol=1e-10)
        support = np.flatnonzero(fit.fit(regressors, regressors.sum(1)).coef_)
        assert 500 < len(support) < units
        assert selections[len(support)].tolist() == support.tolist()


def kept_rows(*channels: int) -> np.ndarray:
    return (np.array(channels)[:, None] * KERNEL + np.arange(KERNEL)).ravel()


def share(rows: np.ndarray, weight: np.ndarray, kept: np.ndarray, new: Tensor | np.ndarray) -> float:
    """The squared error of the outputs, as a share of their variance."""
    outputs = rows @ weight
    return float(((outputs - rows[:, kept] @ np.asarray(new)) ** 2).sum() / (outputs**2).sum())


def test_reconstruction_is_the_least_squares_of_the_explicit_rows():
    rows, weight = data(6)
    kept = kept_rows(0, 2, 5)
    new = reconstruct(moments(rows), torch.from_numpy(weight), kept)
    expected = np.linalg.lstsq(rows[:, kept], rows @ weight, rcond=None)[0]
    np.testing.assert_allclose(new, expected, atol=2e-3 * np.abs(expected).max())
    assert share(rows, weight, kept, new) == pytest.approx(share(rows, weight, kept, expected), rel=1e-4)
    assert share(rows, weight, kept, new) < 0.9 * share(rows, weight, kept, weight[kept])


def test_where_nothing_is_removed_the_weights_stay_bit_for_bit():
    rows, weight = data(3)
    for dtype in (torch.float32, torch.float64):
        matrix = torch.from_numpy(weight).to(dtype)
        assert torch.equal(reconstruct(moments(rows), matrix, np.arange(len(weight))), matrix)


def test_what_the_data_says_nothing_about_stays_as_it_is():
    rows, weight = data(4)
    rows[:, kept_rows(1)] = 0.0
    rows[:, kept_rows(2)] = rows[:, kept_rows(0)]
    matrix = torch.from_numpy(weight)
    new = reconstruct(moments(rows), matrix, kept_rows(0, 1, 3))
    assert new.isfinite().all()
    np.testing.assert_array_equal(new[KERNEL : 2 * KERNEL], weight[kept_rows(1)])
    # Channel 2 was a copy of channel 0, which takes over its weights.
    np.testing.assert_allclose(new[:KERNEL], weight[kept_rows(0)] + weight[kept_rows(2)], atol=5e-3)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_singular_covariance_gives_finite_weights(rank):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((rank, 24))
    covariance = torch.from_numpy(rows.T @ rows).float()
    weight = torch.from_numpy(rng.standard_normal((24, 3))).float()
    new = reconstruct(Moments(covariance, torch.zeros(24)), weight, np.arange(10))
    assert new.isfinite().all()
    assert new.dtype == torch.float32
    assert new.norm() < 3 * weight.norm()


def test_a_regular_system_is_solved_with_the_ridge_on_its_diagonal():
    matrix, right = torch.tensor([[2.0, 1.0], [1.0, 4.0]]).double(), torch.tensor([[1.0], [2.0]]).double()
    # 0.1 of the mean diagonal 3 is 0.3.
    expected = torch.linalg.solve(torch.tensor([[2.3, 1.0], [1.0, 4.3]]).double(), right)
    assert torch.allclose(ridge_solve(matrix, right, 0.1), expected)


def test_a_matrix_that_rounding_made_indefinite_is_solved_with_a_larger_ridge():
    # The mean diagonal is 0.4995, of which the share 1e-4, and ten times as much, leave -1e-3 negative.
    matrix, right = torch.diag(torch.tensor([1.0, -1e-3]).double()), torch.ones(2, 1).double()
    factor, shift = ridge_factor(matrix, 1e-4)
    assert shift == pytest.approx(4.995e-3)
    assert torch.allclose(factor.square(), matrix + shift * torch.eye(2))
    expected = torch.tensor([[1 / 1.004995], [1 / 3.995e-3]]).double()
    assert torch.allclose(ridge_solve(matrix, right, 1e-4), expected)


def test_a_system_of_more_inputs_than_samples_is_solved_as_in_the_space_of_the_samples():
    rng = np.random.default_rng(0)
    rows, targets = rng.standard_normal((20, 800)) + 5, rng.standard_normal((20, 3))
    covariance, products = torch.from_numpy(rows.T @ rows / 20), torch.from_numpy(rows.T @ targets / 20)
    # (X'X + r I)^-1 X' = X' (X X' + r I)^-1
    shift = 20 * 1e-4 * float(covariance.diagonal().mean())
    expected = rows.T @ np.linalg.solve(rows @ rows.T + shift * np.eye(20), targets)
    np.testing.assert_allclose(ridge_solve(covariance, products, 1e-4), expected, atol=1e-7 * np.abs(expected).max())
    # The other 780 eigenvalues are nothing but rounding, which changes the solution and hardly what it gives.
    rounded = ridge_solve(covariance.float().double(), products, 1e-4)
    np.testing.assert_allclose(rows @ rounded.numpy(), rows @ expected, atol=1e-3 * np.abs(targets).max())


@pytest.mark.parametrize("order", [[0, 3, 1, 4, 5, 2], [5, 4, 3, 2, 1, 0]])
def test_lost_shares_of_nested_selections_are_those_of_the_explicit_outputs(order):
    rows, weight = data(6)
    m, matrix = moments(rows), torch.from_numpy(weight)
    selections = [kept_rows(*sorted(order[:count])) for count in range(1, 7)]
    # The third is no part of the fourth.
    selections[3] = kept_rows(*sorted(set(range(6)) - {order[0], order[1]}))
    each = [share(rows, weight, kept, reconstruct(m, matrix, kept)) for kept in selections]
    np.testing.assert_allclose(lost_shares(m, matrix, selections), each, rtol=2e-3, atol=2e-4)
    assert lost_shares(m, matrix, [np.arange(0), selections[0]]).tolist() == [1.0, pytest.approx(each[0], rel=2e-3)]


def test_lost_shares_fall_with_what_is_kept():
    rows, weight = data(6)
    # Each adds a channel to the one before.
    nested = [kept_rows(*range(count)) for count in range(1, 7)]
    losses = lost_shares(moments(rows), torch.from_numpy(weight), nested).tolist()
    assert losses == sorted(losses, reverse=True)
    assert losses[0] < 1
    assert losses[-1] == pytest.approx(0.0, abs=1e-3)


def test_lost_shares_of_an_output_that_does_not_vary_are_0():
    assert lost_shares(Moments(torch.zeros(8, 8), torch.zeros(8)), torch.ones(8, 2), [np.arange(4)]).tolist() == [0.0]


def test_the_paths_of_equal_keys_are_computed_once(monkeypatch, tmp_path):
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path))
    grams = {name: gram(*data(channels), single(channels)) for name, channels in (("one", 5), ("two", 9))}
    first = cached_selections("key", lambda: grams)
    again = cached_selections("key", lambda: pytest.fail("computed again"))
    for name, matrix in grams.items():
        expected = [kept.tolist() for kept in lasso_selections(matrix)]
        assert [kept.tolist() for kept in first[name]] == [kept.tolist() for kept in again[name]] == expected
    assert len(cached_selections("other", lambda: {"one": grams["two"]})["one"]) == 10
