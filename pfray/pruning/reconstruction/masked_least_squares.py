"""Least squares for the weights that a mask leaves of a layer, from the moments of what the layer reads.

Notation as in ``im2col.py``: D inputs of a row, O outputs. W ``(D, O)`` are the weights before pruning, C ``(D, D)``
the covariance of the rows; K is 1 where a weight is kept. What is looked for is V, 0 where K is, with the least

    E(V) = tr((V - W)' C (V - W)),

what the layer's outputs differ by on average. Each output is a problem of its own, with a mask of its own, so that
there is no common matrix to invert; conjugate gradients solve all of them side by side. None of their steps raises E.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def fit_kept(covariance: Tensor, weight: Tensor, kept: Tensor, steps: int) -> Tensor:
    """V ``(D, O)`` after so many steps from K W; with 0 steps K W itself.

    kept: K, booleans ``(D, O)``. The steps are preconditioned by the diagonal of C, because inputs differ in size.
    """
    mask = kept.to(weight)
    found = weight * mask
    energy = covariance.diagonal()
    scale = torch.where(energy > 0, 1 / energy.clamp(min=1e-30), 0.0)[:, None]
    residual = -mask * (covariance @ (found - weight))
    direction = scale * residual
    product = (residual * direction).sum(0)
    for _ in range(steps):
        curved = covariance @ direction
        length = _ratio(product, (direction * curved).sum(0))
        found += length * direction
        residual -= length * (mask * curved)
        preconditioned = scale * residual
        before, product = product, (residual * preconditioned).sum(0)
        direction = preconditioned + _ratio(product, before) * direction
    return found


def lost_share(covariance: Tensor, weight: Tensor, fitted: Tensor) -> float:
    """E(V) / E(0): the share of the outputs' variance that is lost."""
    difference = fitted - weight
    whole = (weight * (covariance @ weight)).sum().item()
    return (difference * (covariance @ difference)).sum().item() / whole if whole > 0 else 0.0


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """0 where a column is solved already."""
    return torch.where(other > 0, one / torch.where(other > 0, other, 1.0), 0.0)
