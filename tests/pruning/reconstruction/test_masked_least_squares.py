"""Least squares under a mask: against the exact solution, step by step, and where inputs say nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pfray.pruning.reconstruction.masked_least_squares import fit_kept


def lost_share(covariance: Tensor, weight: Tensor, fitted: Tensor) -> float:
    """E(V) / E(0): lost share of the outputs' variance."""
    lost, whole = fitted - weight, (weight * (covariance @ weight)).sum().item()
    return (lost * (covariance @ lost)).sum().item() / whole


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    """(covariance ``(6, 6)``, weight ``(6, 4)``, kept)."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 6, generator=generator, dtype=torch.float64) @ torch.randn(
        6, 6, generator=generator, dtype=torch.float64
    )
    weight = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    kept = torch.rand(6, 4, generator=generator) < 0.5
    kept[:, 3] = False
    kept[:, 2] = True
    return rows.T @ rows / 200, weight, kept


def test_each_output_gets_the_least_squares_of_the_inputs_that_it_keeps(problem):
    covariance, weight, kept = problem
    found = fit_kept(covariance, weight, kept, steps=6)
    for output in range(4):
        own = kept[:, output]
        expected = torch.zeros(6, dtype=torch.float64)
        if own.any():
            right = covariance[own] @ weight[:, output]
            expected[own] = torch.linalg.solve(covariance[own][:, own], right)
        assert found[:, output].numpy() == pytest.approx(expected.numpy(), abs=1e-8)
    # A whole output stays as it is, and of one that loses all there is nothing.
    assert torch.equal(found[:, 2], weight[:, 2])
    assert not found[:, 3].any()


def test_no_step_raises_what_is_lost_and_further_ones_change_nothing(problem):
    covariance, weight, kept = problem
    lost = [lost_share(covariance, weight, fit_kept(covariance, weight, kept, steps)) for steps in range(8)]
    assert lost[0] == pytest.approx(lost_share(covariance, weight, weight * kept))
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(lost))
    assert lost[1] < 0.9 * lost[0]
    assert lost[7] == pytest.approx(lost[6])


def test_inputs_that_are_always_zero_and_steps_beyond_the_solution_do_no_harm():
    covariance = torch.diag(torch.tensor([2.0, 0.0, 1.0]))
    weight = torch.tensor([[1.0], [5.0], [3.0]])
    found = fit_kept(covariance, weight, torch.tensor([[True], [True], [False]]), steps=30)
    assert torch.equal(found, torch.tensor([[1.0], [5.0], [0.0]]))
