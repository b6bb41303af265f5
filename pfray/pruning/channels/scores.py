"""Scores of a group's units, higher for units that should stay, from the weights or from the gradients of the loss.

Notation: a unit u of a group has channels in several layers and the score s_u. For a convolution's output channel k
with the filter W_k, its feature map z_k of M positions, and the loss C:

* ``l1`` (Li et al. 2017, section 3.1): sum of |W_k|, over all layers that produce the unit.
* ``taylor`` (Molchanov et al. 2017, equations 7 and 8): |1/M sum_m dC/dz_k,m z_k,m|, the first-order change of the loss
  if z_k were 0, per sample, then averaged. The feature map is the input of the next layer. Each layer's scores are
  divided by their l2 norm (section 2.3), then summed over all layers that read the unit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfray.nn.attention import spell_out
from pfray.nn.inputs import count, floats, map_tensors
from pfray.nn.layers import has_features_last
from pfray.nn.modes import forward
from pfray.pruning.channels.graph import ChannelGroup
from pfray.pruning.channels.importance import WITH_FILTERS, filter_magnitudes
from pfray.task import Task

# Samples whose feature maps and gradients are in memory at once.
BATCH = 64


def l1_scores(model: nn.Module, group: ChannelGroup) -> np.ndarray:
    """l1 norms ``(U,)`` of all filters that produce a unit, without biases."""
    total = np.zeros(group.units)
    for cut in group.cuts:
        if cut.inside is not None:
            total += cut.inside.magnitudes(model.get_submodule(cut.layer), cut.size)[cut.index].sum(1)
        if cut.side == "out" and cut.kind in WITH_FILTERS:
            total += filter_magnitudes(model.get_submodule(cut.layer))[cut.index].sum(1)
    return total


def taylor_scores(model: nn.Module, groups: Iterable[ChannelGroup], task: Task, images: int) -> dict[str, np.ndarray]:
    """First-order changes of the loss without a unit's feature map (the module's notation), ``(U,)`` per group.

    Computed over the first ``images`` training inputs without augmentation, in evaluation mode, so that samples are
    independent.
    """
    cuts = [(group.name, cut) for group in groups for cut in group.cuts if cut.side == "in"]
    sums = {(name, cut.layer): np.zeros(len(cut.index)) for name, cut in cuts}
    model = copy.deepcopy(model).eval()
    # Gradients flow through frozen layers too, and begin at the parameters: a model's inputs may be integers.
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    spell_out(model)
    read: dict[str, list[Tensor]] = {}

    def keep(name: str, inputs: tuple[Tensor, ...]) -> None:
        # Layers may be called by keywords, recurrent ones with packed sequences; their scores come from other readers.
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].requires_grad:
            read[name].append(inputs[0])

    for layer in {cut.layer for _, cut in cuts}:
        hook = partial(keep, layer)
        model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs, hook=hook: hook(inputs))
        read[layer] = []
    for inputs, targets in task.batches(task.train.head(images), BATCH, next(model.parameters()).device):
        # A copy, because a model may modify its inputs in place.
        outputs = forward(model, map_tensors(torch.clone, inputs))
        loss = task.loss(floats(task.select(outputs)), targets)
        pairs = [(layer, maps) for layer, calls in read.items() for maps in calls]
        gradients = torch.autograd.grad(loss, [maps for _, maps in pairs], allow_unused=True)
        products: dict[str, Any] = {}
        for (layer, maps), gradient in zip(pairs, gradients, strict=True):
            if gradient is not None:
                # The loss is the batch mean, so a sample's gradient is multiplied by the batch size.
                product = (count(inputs) * gradient * maps).detach()
                product = samples_first(model.get_submodule(layer), product, count(inputs))
                products.setdefault(layer, []).append(product.reshape(*product.shape[:2], -1).mean(2))
        for name, cut in cuts:
            for product in products.get(cut.layer, ()):
                # (N, C) to (N, U): the mean over the unit's channels, which after a flatten include positions.
                means = product[:, torch.from_numpy(cut.index).to(product.device)].mean(2)
                sums[name, cut.layer] += means.abs().double().sum(0).cpu().numpy()
        for calls in read.values():
            calls.clear()
    scores = {name: np.zeros(len(cut.index)) for name, cut in cuts}
    for (name, _), total in sums.items():
        scores[name] += total / max(np.sqrt(np.square(total).sum()), 1e-30)
    return scores


def samples_first(layer: nn.Module, read: Tensor, samples: int) -> Tensor:
    """A layer's input as ``(N, C, ...)``: N ``samples``, which may come behind the steps, and C channels."""
    if not has_features_last(layer):
        return read
    if read.dim() == 3:
        # Only a linear layer does not know, and with as many steps as samples no one does.
        steps_first = not getattr(layer, "batch_first", read.shape[0] == samples or read.shape[1] != samples)
        read = read.transpose(0, 1) if steps_first else read
    return read.movedim(-1, 1)
