"""The Fisher information of weights: how much a change of them moves the model's predictions, to second order.

Notation: weights w, their change d, predictions p(y | x, w). For small d the predictions move by

    KL(p(. | w) || p(. | w + d)) = 1/2 d^T F d + ...,   F = E_x E_{y ~ p(. | x, w)} [grad log p grad log p^T],

the Fisher information (Kunstner et al. 2019, "Limitations of the empirical Fisher approximation", section 2). Only the
diagonal of F is kept, as in Optimal Brain Damage (LeCun et al. 1990): rounding errors of two weights are nearly
independent. Labels are drawn from the predictions, so gradients have a mean of zero, and the mean gradient g of B
labels gives B E[g^2] = diag F for any B.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.nn.inputs import count, floats
from pfray.nn.modes import forward
from pfray.task import Task

IMAGES, BATCH = 500, 10


def fisher(model: nn.Module, names: Sequence[str], task: Task, images: int = IMAGES) -> dict[str, Tensor]:
    """The diagonal of F, in nats and in the weight's shape, for each layer of ``names``.

    images: training inputs to average over. For a loss other than the cross entropy no labels can be drawn; the targets
    are used, which gives the empirical Fisher information.
    """
    model = copy.deepcopy(model).eval().requires_grad_(True)
    weights = {name: model.get_submodule(name).get_parameter("weight") for name in names}
    device = next(model.parameters()).device
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    draws, batches = torch.Generator().manual_seed(0), 0
    for inputs, targets in task.batches(task.train.head(images), BATCH, device):
        outputs = floats(task.select(forward(model, inputs)))
        if task.loss is F.cross_entropy:
            targets = _drawn(outputs.detach(), draws).to(device)
        labels = targets.numel() if task.loss is F.cross_entropy else count(inputs)
        gradients = torch.autograd.grad(task.loss(outputs, targets), list(weights.values()), allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                total[name] += labels * gradient.square()
        batches += 1
    return {name: each / batches for name, each in total.items()}


def _drawn(outputs: Tensor, draws: torch.Generator) -> Tensor:
    """Labels ``(N, ...)`` drawn by the class probabilities of outputs ``(N, K, ...)``, on the CPU."""
    chances = outputs.softmax(1).nan_to_num(nan=1.0).movedim(1, -1).cpu()
    return torch.multinomial(chances.flatten(0, -2), 1, generator=draws).view(chances.shape[:-1])


def lost_share(information: Tensor, change: Tensor) -> float:
    """1 - exp(-KL) of a weight's ``change``: 0 for unchanged predictions, towards 1 for lost ones.

    The shares 1 - lost of several layers multiply.
    """
    return -math.expm1(-0.5 * float((information * change.square()).sum()))
