"""Least squares for the weights of a layer that reads fewer channels (He, Zhang and Sun 2017).

Notation: a layer has weights W ``(D, O)`` and reads rows whose covariance is C ``(D, D)``; S are the rows that stay, R
the rows removed.
"""

from __future__ import annotations

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
    return (rows[chosen] + solve_regular(own[:, chosen], right)).to(weight.dtype)


def solve_regular(matrix: Tensor, right: Tensor, ridge: float = RIDGE) -> Tensor:
    """(A + r I)^-1 B for a covariance A ``(D, D)``, with r the ``ridge`` share of its mean diagonal."""
    shift = max(ridge * matrix.diagonal().mean().item(), 1e-12)
    factor = torch.linalg.cholesky(matrix + shift * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))
    return torch.cholesky_solve(right, factor)


def lost_share(moments: Moments, weight: Tensor, kept: np.ndarray, reconstructed: Tensor) -> float:
    """Error of the ``reconstructed`` weights as a share of the output's variance, 0 to 1."""
    covariance, rows = moments.covariance.double(), weight.double()
    difference = rows.clone()
    difference[torch.from_numpy(kept)] -= reconstructed.double()
    whole = (rows * (covariance @ rows)).sum().item()
    lost = (difference * (covariance @ difference)).sum().item()
    return min(1.0, max(0.0, lost / whole)) if whole > 0 else 0.0
