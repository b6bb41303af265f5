"""Batch-norm statistics, re-estimated after a model has changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pfray.measure.evaluation import evaluate
from pfray.nn.inputs import Inputs
from pfray.nn.modes import autocast, evaluation_mode, forward
from pfray.task import Task

# Training images that the batch norms of a result are re-estimated on.
BN_IMAGES = 1000


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module,
    task: Task,
    images: int,
    precision: str,
    batch_size: int = 250,
    norms: Sequence[nn.modules.batchnorm._BatchNorm] | None = None,
    augmented: bool = False,
) -> None:
    """Set the batch norms' running statistics to their mean over the first ``images`` training images.

    Compression shifts the inputs of each layer. Statistics are the cheapest part to correct, because no gradient is
    needed. norms: those to set; None for all of the model's. augmented: over random training images, augmented as in a
    training, which suits weights that were just trained (docs/results.md, *Each item of the training alone*).
    """
    norms = batch_norms(model) if norms is None else norms
    if not norms or not images:
        return
    momenta = [norm.momentum for norm in norms]
    device = next(model.parameters()).device
    # What a training reads is read by itself; of a stream the first images would be read besides.
    split = None if augmented else task.train.head(images)
    count = min(images, len(task.train)) if split is None else len(split)
    # Batches of nearly equal size, because all have the same weight, and because a last batch of one image has no
    # variance on a 1x1 feature map.
    size = math.ceil(count / math.ceil(count / batch_size))
    batches = _augmented(task, size, count, device) if split is None else task.batches(split, size, device)
    with evaluation_mode(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # None makes the running statistics a plain average over batches
            norm.train()
        for inputs, _ in batches:
            with autocast(device, precision):
                forward(model, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _augmented(task: Task, size: int, images: int, device: torch.device) -> Iterator[tuple[Inputs, Any]]:
    """Batches of an epoch of the training, up to so many images."""
    with closing(task.train.epochs(size, [0])) as epochs:
        batches = islice(next(epochs), max(1, images // size))
        yield from task.training_batches(batches, torch.Generator().manual_seed(0), device)


def with_better_statistics(model: nn.Module, task: Task) -> nn.Module:
    """The model, or a copy with batch norms re-estimated, whichever has the better validation accuracy.

    With weights of 8 bits the statistics of the full training are better, with few bits those of a small sample.
    """
    if not batch_norms(model):
        return model
    reestimated = copy.deepcopy(model)
    reestimate_batch_norm(reestimated, task, BN_IMAGES, "float32")
    return max((model, reestimated), key=lambda each: evaluate(each, task, task.validation).accuracy)


@torch.no_grad()
def set_statistics(norm: nn.Module, read: Sequence[Tensor]) -> None:
    """Set the running statistics of a batch norm to the mean and variance of the batches ``(N, C, ...)`` that it reads.
    """
    own: Any = norm
    values = torch.cat(list(read))
    var, mean = torch.var_mean(values.float(), [axis for axis in range(values.dim()) if axis != 1])
    own.running_mean.copy_(mean)
    own.running_var.copy_(var)
