"""LASSO channel selection (He, Zhang and Sun 2017).

Notation: a layer with weights W ``(D, O)`` reads rows whose covariance is C ``(D, D)``; U units, each a set of rows of
W. The layer's output is the sum of its units' contributions X_u W_u.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from pfray.pruning.reconstruction.covariance import Moments
from pfray.pruning.reconstruction.lasso_path import lasso_path
from pfray.utils.cache import cache_dir, made_once

# Added to the mean diagonal of 1, because units repeat each other where there are fewer samples than units.
RIDGE = 1e-7
# The path ends at this share of its first lambda. Below it are the rounding of float32 moments and the ridge: units
# that repeat each other change places in thousands of steps.
LOWEST = 1e-7


def cached_selections(key: str, grams: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """``lasso_selections`` of every group, by name, computed once on a machine for each ``key``.

    grams: computes the groups' Gram matrices. key: a ``content_key`` of what they are computed from.
    """

    def chosen() -> dict[str, Tensor]:
        return {name: _as_mask(lasso_selections(gram)) for name, gram in grams().items()}

    masks = made_once(cache_dir() / "lasso" / f"{key}.safetensors", chosen)
    return {name: [np.flatnonzero(row) for row in mask.numpy()] for name, mask in masks.items()}


def _as_mask(selections: list[np.ndarray]) -> Tensor:
    """``(U + 1, U)``, row k True for the units of the selection for k."""
    mask = torch.zeros(len(selections), len(selections) - 1, dtype=torch.bool)
    for row, kept in zip(mask, selections, strict=True):
        row[torch.from_numpy(kept)] = True
    return mask


def unit_gram(moments: Moments, weight: Tensor, index: np.ndarray, channels: int) -> np.ndarray:
    """Gram matrix ``(U, U)`` of the units' contributions: G_uv = E[(X_u W_u) . (X_v W_v)].

    weight: ``(D, O)``. index: ``(U, r)``, the input channels of each unit, out of ``channels``. The sum of all entries
    is the variance of the units' joint contribution.
    """
    rows = weight.double()
    kernel = len(rows) // channels
    products = (moments.covariance.double() * (rows @ rows.T)).unflatten(0, (-1, kernel)).unflatten(2, (-1, kernel))
    between = products.sum((1, 3))
    member = torch.zeros(len(index), len(between), dtype=torch.float64)
    member.scatter_(1, torch.from_numpy(index.astype(np.int64)), 1.0)
    return (member @ between @ member.T).numpy()


def lasso_selections(gram: np.ndarray) -> list[np.ndarray]:
    """The k units to keep, sorted, for every count k = 0 ... U: He et al. 2017, equation 3, for all ratios at once.

    minimize over b in R^U  1/2 |sum_u (1 - b_u) X_u W_u|^2 + lambda |b|_1: the lasso with the units' contributions as
    regressors and their sum as the target, which needs the Gram matrix alone. As lambda falls from infinity to 0 its
    solutions are piecewise linear (``lasso_path.py``). The selection for k is the first support of k units. If no
    support has k units (two enter together), it is the part of the next larger support with the largest
    |b_u| sqrt(G_uu). If the path ends early, units with the largest G_uu are added.
    """
    count = len(gram)
    energy = np.clip(np.diag(gram), 0.0, None)
    scale = energy.mean() or 1.0
    # Of each size, the first support, and the rank of its units. Units outside have the rank 0, below all others.
    ranks = {0: np.zeros(count)}
    for coefficients in lasso_path(gram / scale + RIDGE * np.eye(count), LOWEST):
        ranks.setdefault(int(np.count_nonzero(coefficients)), np.abs(coefficients) * np.sqrt(energy))
    selections, rank = [], ranks[max(ranks)]
    for kept in range(count, -1, -1):
        rank = ranks.get(kept, rank)
        order = np.lexsort((energy, rank))[::-1]
        selections.append(np.sort(order[:kept]))
    return selections[::-1]
