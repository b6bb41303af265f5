"""Which channels a layer can do without, and what its weights become then: He, Zhang and Sun 2017.

Notation: a layer with weights W ``(D, O)`` reads rows whose covariance is C ``(D, D)``; U units, each a set of rows of
W. The layer's output is the sum of what its units contribute, X_u W_u.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from pfray.moments import Moments

# Added to the diagonal, as a share of its mean: keeps dead and repeated channels, and fewer samples than channels, from
# making the system singular.
RIDGE = 1e-4
# Most steps of a LASSO path, for each unit: units may leave again, and then enter once more.
STEPS = 8


def unit_gram(moments: Moments, weight: Tensor, index: np.ndarray, channels: int) -> np.ndarray:
    """``(U, U)``: G_uv = E[(X_u W_u) . (X_v W_v)], the inner products of what the units contribute to the output.

    weight: ``(D, O)``. index: ``(U, r)``, the input channels of each unit, of ``channels`` in all. The sum of all
    entries is the variance of what the units contribute together.
    """
    rows = weight.double()
    kernel = len(rows) // channels
    products = (moments.covariance.double() * (rows @ rows.T)).unflatten(0, (-1, kernel)).unflatten(2, (-1, kernel))
    between = products.sum((1, 3))
    member = torch.zeros(len(index), len(between), dtype=torch.float64)
    member.scatter_(1, torch.from_numpy(index.astype(np.int64)), 1.0)
    return (member @ between @ member.T).numpy()


def lasso_selections(gram: np.ndarray) -> list[np.ndarray]:
    """For every count k = 0 ... U the k units to keep, sorted: He et al. 2017, equation 3, for all ratios at once.

    minimize over b in R^U  1/2 |sum_u (1 - b_u) X_u W_u|^2 + lambda |b|_1: the lasso with the units' contributions as
    regressors and their sum as the target, of which only the Gram matrix is needed. As lambda falls from infinity to 0
    its solutions are piecewise linear (least angle regression, Efron et al. 2004); the support of k units that is met
    first is the selection for k. Where no support has k units (two enter together), those of the next larger one with
    the largest contribution |b_u| sqrt(G_uu); where the path ends early, the largest G_uu are added.
    """
    # Takes a second, which workers that have the selections already need not wait.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path_gram

    count = len(gram)
    energy = np.clip(np.diag(gram), 0.0, None)
    scale = energy.mean() or 1.0
    regular = gram / scale + 1e-7 * np.eye(count)
    with warnings.catch_warnings():
        # Repeated channels make regressors degenerate; whatever the path has left out is added below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        _, _, path = lars_path_gram(regular.sum(1), regular, n_samples=1, method="lasso", max_iter=STEPS * count)
    supports: dict[int, np.ndarray] = {}
    for solution in path.T:
        supports.setdefault(int(np.count_nonzero(solution)), np.abs(solution) * np.sqrt(energy))
    selections = []
    for kept in range(count + 1):
        larger = [size for size in supports if size >= kept]
        # A unit that contributes nothing has a rank too, below all that the path chose.
        rank = supports[min(larger)] if larger else supports[max(supports)]
        order = np.lexsort((energy, rank))[::-1]
        selections.append(np.sort(order[:kept]))
    return selections


@torch.no_grad()
def reconstruct(moments: Moments, weight: Tensor, kept: np.ndarray) -> Tensor:
    """``(D', O)``: weights for the ``kept`` rows, ``(D',)``, that come closest to the layer's output.

    W' = W_S + (C_SS + r I)^-1 C_SR W_R, with R the rows removed: the least squares of He et al. 2017, equation 5, drawn
    towards the weights as they were and not towards 0, so that what the data says nothing about stays as it is.
    """
    covariance, rows = moments.covariance.double(), weight.double()
    chosen = torch.from_numpy(kept)
    gone = torch.ones(len(rows), dtype=torch.bool)
    gone[chosen] = False
    if not gone.any():
        return rows.to(weight.dtype)
    own = covariance[chosen]
    right = own[:, gone] @ rows[gone]
    return (rows[chosen] + solve_regular(own[:, chosen], right)).to(weight.dtype)


def solve_regular(matrix: Tensor, right: Tensor, ridge: float = RIDGE) -> Tensor:
    """(A + r I)^-1 B for a covariance A ``(D, D)``, with r the ``ridge`` share of its mean diagonal."""
    shift = max(ridge * matrix.diagonal().mean().item(), 1e-12)
    factor = torch.linalg.cholesky(matrix + shift * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))
    return torch.cholesky_solve(right, factor)


def lost_share(moments: Moments, weight: Tensor, kept: np.ndarray, reconstructed: Tensor) -> float:
    """The error of ``reconstructed`` as a share of the output's variance: 0 where nothing is lost, 1 where all is."""
    covariance, rows = moments.covariance.double(), weight.double()
    difference = rows.clone()
    difference[torch.from_numpy(kept)] -= reconstructed.double()
    whole = (rows * (covariance @ rows)).sum().item()
    lost = (difference * (covariance @ difference)).sum().item()
    return min(1.0, max(0.0, lost / whole)) if whole > 0 else 0.0
