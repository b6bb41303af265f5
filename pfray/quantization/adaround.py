"""AdaRound: weights rounded up or down so that a layer's outputs, not its weights, have the least error.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization" (equation numbers below).

Notation: R rows of D inputs X (``nn/im2col.py``; of a layer in groups each output reads its own part of a row), weights
W ``(O, D)``, levels low + step c of the codes c = 0 .. n (``affine.py``), activation function f. With the codes' lower
neighbours B of the weights and a variable V for each of them,

    W~ = low + step (B + h(V)),    h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)              (22, 23)

Adam minimizes over V, on random rows in each iteration,

    ||f(W X) - f(W~ X^)||^2 + lambda sum(1 - |2 h(V) - 1|^beta)                                      (24, 25)

where X^ are the inputs that the quantized layers before give. beta falls from 20 to 2, which moves every h(V) to 0 or
1; in the first iterations, the warm start, lambda is 0. The error is divided by that of the nearest rounding and
multiplied by the number of weights, so that one lambda suits all layers.

B is at most n - 1, so a weight beyond the last level may still take the last or the one before; the paper's clipping to
0 .. n leaves it no choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pfray.quantization.granularity import spread
from pfray.quantization.qparams import QParams

ZETA, GAMMA = 1.1, -0.1
BETA = 20.0, 2.0
WARM_START = 0.2
LAMBDA = 1.0
LR = 0.02
ROWS = 256


@dataclass(frozen=True)
class Reconstruction:
    """Outputs f(scale (X W~^T) + offset) of a layer, to be as near as possible to ``goal``.

    rows: X ``(R, G D)`` of a layer in G groups. offset: ``(R, O)``, such as a bias and a shortcut that is added. scale:
    ``(O,)``, of a batch norm behind the layer. goal: ``(R, O)``. activation: f, on ``(R, O)``.
    """

    rows: Tensor
    offset: Tensor
    scale: Tensor
    goal: Tensor
    activation: Callable[[Tensor], Tensor]
    groups: int = 1

    def error(self, weight: Tensor, picked: Tensor | slice = slice(None)) -> Tensor:
        """Mean squared error over the ``picked`` rows, summed over the outputs, with the weight ``(O, D)``."""
        outputs = self.scale * products(self.rows[picked], weight, self.groups) + self.offset[picked]
        return (self.activation(outputs) - self.goal[picked]).square().sum(1).mean()


def products(rows: Tensor, weight: Tensor, groups: int) -> Tensor:
    """``(R, O)``, the rows ``(R, G D)`` times the weight ``(O, D)``, each group of outputs on its own columns."""
    if groups == 1:
        return rows @ weight.T
    parts = rows.view(len(rows), groups, -1).transpose(0, 1)
    return (parts @ weight.view(groups, -1, weight.shape[1]).mT).transpose(0, 1).flatten(1)


@torch.enable_grad()
def adaround(weight: Tensor, qparams: QParams, problem: Reconstruction, iterations: int, seed: int = 0) -> Tensor:
    """Codes of the weight, in its shape. Never worse on all rows than the codes of the nearest levels."""
    weight = weight.detach()
    assert qparams.low is not None
    assert qparams.step is not None
    low, step = (spread(part, weight).expand_as(weight).flatten(1) for part in (qparams.low, qparams.step))
    exact = (weight.flatten(1) - low) / torch.where(step == 0, 1.0, step)
    lower = exact.floor().clamp_(0, 2**qparams.bits - 2)
    nearest = qparams.encode(weight).flatten(1)
    first = problem.error(low + step * nearest)
    if not first > 0:
        return nearest.view_as(weight)
    inside = (exact - lower).clamp(0, 1)
    variable = torch.logit((inside - GAMMA) / (ZETA - GAMMA)).requires_grad_()
    optimizer = torch.optim.Adam([variable], LR, fused=True)
    draws, warm = torch.Generator().manual_seed(seed), WARM_START * iterations
    for iteration in range(iterations):
        picked = torch.randint(len(problem.rows), (ROWS,), generator=draws)
        up = rectified_sigmoid(variable)
        loss = problem.error(low + step * (lower + up), picked) * (up.numel() / first)
        if iteration >= warm:
            left = (iterations - iteration) / (iterations - warm)
            beta = BETA[1] + (BETA[0] - BETA[1]) * left
            loss = loss + LAMBDA * (1 - (2 * up - 1).abs().pow(beta)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codes = lower + (variable.detach() >= 0)
    best = codes if problem.error(low + step * codes) < first else nearest
    return best.view_as(weight)


def rectified_sigmoid(variable: Tensor) -> Tensor:
    """h(V), equation 23."""
    return (variable.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
