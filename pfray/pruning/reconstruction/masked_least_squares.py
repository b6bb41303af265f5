"""Least squares for the weights that a mask keeps of a layer, from the covariance of its inputs.

Notation as in ``im2col.py``: D inputs in a row, O outputs. W ``(D, O)`` are the weights before pruning, C ``(D, D)``
the covariance of the rows; K is 1 for kept weights and 0 for others. V, 0 where K is 0, minimizes

    E(V) = tr((V - W)' C (V - W)),

the mean squared change of the layer's outputs. Each output has a mask of its own, so there is no common matrix to
invert; conjugate gradients solve all outputs in parallel. None of their steps raises E.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def fit_kept(covariance: Tensor, weight: Tensor, kept: Tensor, steps: int) -> Tensor:
    """V ``(D, O)`` after ``steps`` steps of conjugate gradients from K W.

    kept: K, booleans ``(D, O)``. The steps are preconditioned by the diagonal of C, because inputs differ in scale.
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


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """one / other; 0 for columns that are solved already."""
    return torch.where(other > 0, one / torch.where(other > 0, other, 1.0), 0.0)
