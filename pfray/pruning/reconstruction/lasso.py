"""Which channels a layer can do without, and what its weights become then: He, Zhang and Sun 2017.

Notation: a layer with weights W ``(D, O)`` reads rows whose covariance is C ``(D, D)``; U units, each a set of rows of
W. The layer's output is the sum of what its units contribute, X_u W_u.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from pfray.pruning.reconstruction.covariance import Moments

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
