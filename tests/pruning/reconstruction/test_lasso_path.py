"""The LASSO path, against solutions worked by hand, the optimality conditions and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Lasso

from pfray.pruning.reconstruction.lasso_path import lasso_path


def breakpoints(gram: np.ndarray) -> list[np.ndarray]:
    """All coefficients ``(U,)`` at each breakpoint."""
    return list(lasso_path(gram))


def test_a_path_of_independent_regressors_is_the_one_worked_by_hand():
    # b_u = max(0, 1 - lambda / G_uu): the second enters at lambda = 1, where the first has 1 - 1 / 4.
    assert np.allclose(breakpoints(np.diag([1.0, 4.0])), [[0.0, 0.75], [1.0, 1.0]])


def test_a_path_of_dependent_regressors_is_the_one_worked_by_hand():
    # g = (3, 4). From lambda = 4 on b_2 grows by 1/3 of what lambda falls, and c_1 = 3 - b_2 meets lambda = 4 - 3 b_2
    # at b_2 = 1/2. Then both grow until they are 1.
    assert np.allclose(breakpoints(np.array([[2.0, 1.0], [1.0, 3.0]])), [[0.0, 0.5], [1.0, 1.0]])


def problem(seed: int) -> np.ndarray:
    """A Gram matrix of 2 to 40 regressors that are independent, mixed, of few factors, or of very unequal sizes."""
    rng = np.random.default_rng(seed)
    units, rows = int(rng.integers(2, 41)), int(rng.integers(3, 200))
    data = rng.normal(size=(rows, units))
    if seed % 4 == 1:
        data = data @ rng.normal(size=(units, units))
    elif seed % 4 == 2:
        data = 0.3 * data + rng.normal(size=(rows, 3)) @ rng.normal(size=(3, units))
    elif seed % 4 == 3:
        data = data * 10 ** rng.uniform(-2, 2, units) + 3 * data[:, :1]
    gram = data.T @ data
    return gram / np.diag(gram).mean() + 1e-7 * np.eye(units)


def test_every_breakpoint_is_optimal_and_the_last_is_the_sum_of_all():
    left = 0
    for seed in range(80):
        gram = problem(seed)
        target = gram.sum(1)
        start = level = np.abs(target).max()
        sizes = []
        for solution in breakpoints(gram):
            on, correlations = solution != 0, target - gram @ solution
            before, level = level, np.abs(correlations).max()
            assert level <= before + 1e-12 * start, seed
            # |c_u| = lambda where b_u is not 0, with its sign, and nowhere more.
            assert np.allclose(correlations[on], np.sign(solution[on]) * level, rtol=0, atol=1e-12 * start), seed
            sizes.append(int(on.sum()))
        left += int((np.diff(sizes) <= 0).sum())
        assert sizes[-1] == len(gram)
        # A small change of the correlations is a large one of the coefficients where regressors are dependent.
        assert np.abs(target - gram @ solution).max() < 1e-12 * start
    assert left > 20  # regressors that left and entered again


def test_a_path_ends_at_the_share_of_its_first_lambda():
    # Lambda begins at 4 and falls to 1, where the second enters, then to 0.
    gram = np.diag([1.0, 4.0])
    assert len(list(lasso_path(gram, 0.2))) == 2
    assert len(list(lasso_path(gram, 0.3))) == 1


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_the_path_does_not_depend_on_how_many_changes_are_added_at_once(block, monkeypatch):
    expected = breakpoints(problem(1))
    monkeypatch.setattr("pfray.pruning.reconstruction.lasso_path.BLOCK", block)
    found = breakpoints(problem(1))
    assert len(found) == len(expected) > 10
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_between_breakpoints_the_solutions_are_scikit_learns(seed):
    gram = problem(seed)
    regressors, target = np.linalg.cholesky(gram).T, gram.sum(1)
    found = breakpoints(gram)
    levels = [np.abs(target - gram @ solution).max() for solution in found]
    # Below, coordinate descent does not converge.
    clear = [index for index in range(len(found) - 1) if levels[index + 1] > 1e-3 * levels[0]]
    assert len(clear) >= 3
    for index in clear[::3]:
        level = (levels[index] + levels[index + 1]) / 2
        lasso = Lasso(alpha=level / len(gram), fit_intercept=False, max_iter=1_000_000, tol=1e-12)
        lasso.fit(regressors, regressors.sum(1))
        expected = (found[index] + found[index + 1]) / 2
        assert np.allclose(lasso.coef_, expected, atol=1e-4), index


def test_a_regressor_that_others_make_up_is_left_out():
    # The third is the sum of the first two, of which each comes before it.
    data = np.array([[3.0, 0.0, 3.0], [0.0, 3.0, 3.0]])
    found = breakpoints(data.T @ data)
    assert np.isfinite(found).all()
    assert np.abs(data @ found[-1] - data.sum(1)).max() < 1e-9


@pytest.mark.parametrize("gram", [np.zeros((3, 3)), np.zeros((0, 0))])
def test_nothing_to_explain_has_no_breakpoint(gram):
    assert breakpoints(gram) == []
