"""Least squares for the weights of a layer that reads fewer channels (He, Zhang and Sun 2017).

Notation: a layer has weights W ``(D, O)`` and reads rows whose covariance is C ``(D, D)``; S are the rows that stay, R
the rows removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pfray.pruning.reconstruction.covariance import Moments

# Added to the diagonal, as a share of its mean, because dead or repeated channels and too few samples make the system
# singular.
RIDGE = 1e-4


@torch.no_grad()
def reconstruct(moments: Moments, weight: Tensor, kept: np.ndarray) -> Tensor:
    """Weights ``(D', O)`` for the ``kept`` rows, ``(D',)``, that come closest to the layer's output.

    W' = W_S + (C_SS + r I)^-1 C_SR W_R: the least squares of He et al. 2017, equation 5, regularized towards the old
    weights instead of 0, so that directions without data keep their weights.
    """
    covariance, rows = moments.covariance.double(), weight.double()
    chosen = torch.from_numpy(kept)
    gone = torch.ones(len(rows), dtype=torch.bool)
    gone[chosen] = False
    if not gone.any():
        return rows.to(weight.dtype)
    own = covariance[chosen]
    right = own[:, gone] @ rows[gone]
    return (rows[chosen] + ridge_solve(own[:, chosen], right)).to(weight.dtype)


def ridge_factor(matrix: Tensor, ridge: float = RIDGE) -> tuple[Tensor, float]:
    """(Cholesky factor of A + r I, r) for a covariance A ``(D, D)``, which may be singular.

    r is the ``ridge`` share of A's mean diagonal. Rounding can give a singular matrix of many rows negative eigenvalues
    beyond r; r is then raised tenfold until the sum is positive definite.
    """
    shift = max(ridge * matrix.diagonal().mean().item(), 1e-12)
    while True:
        regular = matrix.clone()
        regular.diagonal().add_(shift)
        factor, failed = torch.linalg.cholesky_ex(regular)
        if not failed:
            return factor, shift
        shift *= 10


def ridge_solve(matrix: Tensor, right: Tensor, ridge: float = RIDGE) -> Tensor:
    """(A + r I)^-1 B for a covariance A ``(D, D)``, with r as in ``ridge_factor``."""
    return torch.cholesky_solve(right, ridge_factor(matrix, ridge)[0])


@torch.no_grad()
def lost_shares(moments: Moments, weight: Tensor, selections: Sequence[np.ndarray]) -> np.ndarray:
    """Errors ``(S,)`` after ``reconstruct`` of each selection of kept rows, as shares of the output's variance, 0 to 1.

    The selections rise in size. With T = C W, the minimum over W' of the lost variance + r |W' - W_S|^2 is
    tr(W' C W) + r |W_S|^2 - |Y|^2, where Y = L^-1 (T_S + r W_S) and L L' = C_SS + r I. The first rows of L and Y belong
    to the first rows of S, so selections that each contain the one before need one factor. The penalty, a share of
    about r, counts as lost.
    """
    covariance, rows = moments.covariance.double(), weight.double()
    products = covariance @ rows
    whole = (rows * products).sum().item()
    if whole <= 0:
        return np.zeros(len(selections))
    shares: list[float] = []
    for order, ends in _nested(selections):
        factor, shift = ridge_factor(covariance[order][:, order])
        own = rows[order]
        solved = torch.linalg.solve_triangular(factor, products[order] + shift * own, upper=False)
        explained = (solved.square() - shift * own.square()).sum(1).cumsum(0)
        shares += [1 - explained[end - 1].item() / whole if end else 1.0 for end in ends]
    return np.clip(shares, 0.0, 1.0)


def _nested(selections: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, list[int]]]:
    """(rows in an order, ends) for runs of selections that each contain the one before: the first ``end`` rows."""
    order, ends = np.zeros(0, dtype=np.int64), list[int]()
    for kept in selections:
        new = np.setdiff1d(kept, order)
        if len(order) + len(new) > len(kept):
            yield torch.from_numpy(order), ends
            order, ends, new = order[:0], [], kept
        order = np.concatenate([order, new])
        ends.append(len(order))
    if ends:
        yield torch.from_numpy(order), ends
