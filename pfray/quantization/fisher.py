"""What a change of a layer's weight does to the model's predictions, to second order, without a measurement.

Notation: weights w, their change d, predictions p(y | x, w). For small d the predictions move by

    KL(p(. | w) || p(. | w + d)) = 1/2 d^T F d + ...,   F = E_x E_{y ~ p(. | x, w)} [grad log p grad log p^T],

the Fisher information (Kunstner et al. 2019, "Limitations of the empirical Fisher approximation", section 2). Of F the
diagonal is kept, as in Optimal Brain Damage (LeCun et al. 1990): rounding errors of two weights are nearly independent.
Because the labels are drawn from the predictions, gradients have a mean of zero, so the mean gradient g of B labels
gives B E[g^2] = diag F, whatever B.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.nn.modes import channels_last
from pfray.task import Task

IMAGES, BATCH = 500, 10


def fisher(model: nn.Module, names: Sequence[str], task: Task, images: int = IMAGES) -> dict[str, Tensor]:
    """The diagonal of F, in nats, for the weight of each layer of ``names``, of the weight's shape.

    images: training inputs that it is the mean over. Where the task's loss is not the cross entropy there is nothing to
    draw labels from; the targets take their place, and it is the empirical Fisher information.
    """
    model = copy.deepcopy(model).eval().requires_grad_(True)
    weights = {name: model.get_submodule(name).get_parameter("weight") for name in names}
    device = next(model.parameters()).device
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    draws, batches = torch.Generator().manual_seed(0), 0
    for inputs, targets in task.batches(task.train.head(images), BATCH, device):
        outputs = model(channels_last(inputs)).float()
        if task.loss is F.cross_entropy:
            targets = _drawn(outputs.detach(), draws).to(device)
        labels = targets.numel() if task.loss is F.cross_entropy else len(inputs)
        gradients = torch.autograd.grad(task.loss(outputs, targets), list(weights.values()), allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                total[name] += labels * gradient.square()
        batches += 1
    return {name: each / batches for name, each in total.items()}


def _drawn(outputs: Tensor, draws: torch.Generator) -> Tensor:
    """Labels ``(N, ...)`` by the chances that outputs ``(N, K, ...)`` give the K classes, on the CPU."""
    chances = outputs.softmax(1).nan_to_num(nan=1.0).movedim(1, -1).cpu()
    return torch.multinomial(chances.flatten(0, -2), 1, generator=draws).view(chances.shape[:-1])


def lost_share(information: Tensor, change: Tensor) -> float:
    """1 - exp(-KL) of a weight's ``change``: 0 where the predictions stay, towards 1 where they are gone.

    The shares that several layers leave, multiplied, are then what all of them leave together.
    """
    return -math.expm1(-0.5 * float((information * change.square()).sum()))
