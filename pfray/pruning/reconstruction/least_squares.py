"""Weights of a layer that reads fewer channels, by least squares."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pfray.pruning.reconstruction.covariance import Moments

# Added to the diagonal, as a share of its mean: keeps dead and repeated channels, and fewer samples than channels, from
# making the system singular.
RIDGE = 1e-4


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
