"""Auxiliary losses inside a network: their layers, their heads, and training on them (Zhuang et al. 2018).

Notation: the channel groups are divided into stages. A layer's output is seen as maps ``(N, C, L)``, L positions of C
channels, from which a head makes outputs ``(N, K)`` like the model's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.errors import UnsupportedModel
from pfray.nn.attention import calling_projections
from pfray.nn.inputs import Inputs, join, map_tensors, tensors
from pfray.nn.layers import has_features_last
from pfray.nn.modes import forward, keep_memory_format
from pfray.pruning.channels.graph import ChannelGroup
from pfray.task import Task, example_input
from pfray.training.hooks import Hook
from pfray.training.loop import choose_precision, fit
from pfray.training.settings import Training

# Training inputs, forward passes only, that a head's initial weights are fitted to.
HEAD_IMAGES = 1000
BATCH = 128
# Weight decay of a head's initial weights, which separable classes would drive to infinity.
HEAD_DECAY = 1e-3


@dataclass(frozen=True)
class Stage:
    """Groups that are pruned one after the other, and the layer of their auxiliary loss; None: the model's own loss."""

    groups: tuple[ChannelGroup, ...]
    layer: str | None


class Head(nn.Module):
    """Batch norm, ReLU, average pooling and a linear layer: maps ``(N, C, L)`` to ``(N, K)`` (equations 2 and 3).

    alive: ``(C,)``, 0 for channels that are removed already and hidden from the head.
    """

    def __init__(self, alive: Tensor, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(len(alive))
        # Not nn.Linear, whose initialization would draw from the global generator.
        self.theta = nn.Parameter(torch.zeros(outputs, len(alive)))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.alive: Tensor
        self.register_buffer("alive", alive)

    def pooled(self, maps: Tensor) -> Tensor:
        return F.relu(self.norm(maps)).mean(2) * self.alive

    def forward(self, maps: Tensor) -> Tensor:
        return F.linear(self.pooled(maps), self.theta, self.bias)


class WithHead(nn.Module):
    """A model with its own outputs and, in ``extra``, the outputs of a head on one of its layers."""

    def __init__(self, model: nn.Module, layer: str, head: Head) -> None:
        super().__init__()
        self.model, self.head = model, head
        keep_memory_format(model, self)
        self.handle = model.get_submodule(layer).register_forward_hook(self._see)

    def _see(self, layer: nn.Module, _: object, output: Tensor) -> Tensor:
        self.extra = self.head(as_maps(layer, output))
        return output.clone()  # because an activation behind the layer may work in place

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


def tune(
    model: nn.Module, stage: Stage, head: Head | None, task: Task, training: Training, steps: int, seed: int, hold: Hook
) -> None:
    """Train in place for ``steps`` optimizer steps, on the stage's auxiliary loss plus the task's, or the task's alone.

    hold: called after each step. Leaves the model in evaluation mode. Raises TrainingFailed.
    """
    precision = choose_precision(model, next(model.parameters()).device)
    if head is None or stage.layer is None:
        fit(model, task, training, seed=seed, precision=precision, hook=hold, steps=steps)
    else:
        watched, plain = WithHead(model, stage.layer, head), task.loss

        def both(outputs: Any, targets: Any) -> Tensor:
            return plain(outputs, targets) + plain(watched.extra.float(), targets)

        try:
            with calling_projections(model):
                fit(watched, replace(task, loss=both), training, seed=seed, precision=precision, hook=hold, steps=steps)
        finally:
            watched.handle.remove()
        head.zero_grad(set_to_none=True)
        head.eval()
    model.zero_grad(set_to_none=True)
    model.eval()


def divide(model: nn.Module, groups: Sequence[ChannelGroup], losses: int, task: Task) -> list[Stage]:
    """Divide the groups, in execution order, into ``losses`` + 1 stages.

    The layer of a stage, but for the last, is the first layer that depends on the first readers of all its groups. A
    stage has no auxiliary loss if only the outputs depend on all of them.
    """
    parts = [part for part in np.array_split(np.arange(len(groups)), losses + 1) if len(part)]
    if not parts:
        return []
    names = [name for name, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]
    # Which layers depend on which is seen by gradients, which begin at the weights: tokens have none.
    probe = copy.deepcopy(model).eval()
    for parameter in probe.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    made, _ = observe(probe, names, example_input(task, next(model.parameters()).device), to_the_end=True)
    order = list(made)
    stages = []
    for part in parts[:-1]:
        own = tuple(groups[index] for index in part)
        reading = [[cut.layer for cut in group.cuts if cut.side == "in" and cut.layer in made] for group in own]
        first = [min(layers, key=order.index) for layers in reading if layers]
        start = max((order.index(layer) for layer in first), default=len(order))
        behind = (layer for layer in order[start:] if _leads_to([made[name] for name in first], made[layer]))
        layer = next(behind, None)
        # The layer that makes the outputs has the task's own loss.
        stages.append(Stage(own, layer if layer and _leads_on(made, order, layer) else None))
    return [*stages, Stage(tuple(groups[index] for index in parts[-1]), None)]


def _leads_to(sources: Sequence[Tensor], target: Tensor) -> bool:
    if not target.requires_grad:
        return False
    found = torch.autograd.grad(target.sum(), sources, retain_graph=True, allow_unused=True)
    return all(gradient is not None for gradient in found)


def _leads_on(made: Mapping[str, Tensor], order: Sequence[str], layer: str) -> bool:
    """True if another layer depends on ``layer``."""
    return any(_leads_to([made[layer]], made[later]) for later in order[order.index(layer) + 1 :])


def make_heads(
    model: nn.Module, stages: Iterable[Stage], alive: Mapping[tuple[str, str], np.ndarray], task: Task
) -> dict[str | None, Head]:
    """Heads of the stages that have a layer, by layer, in evaluation mode; fitted to the present model.

    Raises UnsupportedModel for a layer with outputs that are not finite and for model outputs other than (N, K).
    """
    layers = [stage.layer for stage in stages if stage.layer is not None]
    if not layers:
        return {}
    outputs, device = outputs_for(model, task), next(model.parameters()).device
    model = copy.deepcopy(model).eval().requires_grad_(False)
    split = task.train.head(HEAD_IMAGES)

    def batches() -> Iterator[tuple[str, Tensor]]:
        # Batches of nearly equal size, because a last batch of one sample has no variance.
        size = math.ceil(len(split) / math.ceil(len(split) / BATCH))
        for inputs, _ in task.batches(split, size, device):
            for layer, output in observe(model, layers, inputs)[0].items():
                yield layer, as_maps(model.get_submodule(layer), output)

    heads: dict[str | None, Head] = {}
    pooled: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with torch.no_grad():
        for layer, maps in batches():
            if layer not in heads:
                sees = torch.zeros(maps.shape[1], device=device)
                sees[torch.from_numpy(alive.get((layer, "out"), np.arange(len(sees)))).to(device)] = 1.0
                heads[layer] = Head(sees, outputs).to(device)
                heads[layer].norm.momentum = None  # makes the running statistics a plain average over batches
            heads[layer].norm(maps)
        for head in heads.values():
            head.eval()
            head.norm.momentum = 0.1
        for layer, maps in batches():
            pooled[layer].append(heads[layer].pooled(maps))
    targets = join([own for _, own in task.batches(split, BATCH, device)])
    for layer, parts in pooled.items():
        features = torch.cat(parts)
        if not bool(features.isfinite().all()):
            raise UnsupportedModel(
                f"layer {layer} gives values that are not finite. Remedy: check the model's weights and the data's "
                "normalization"
            )
        _fit_linear(heads[layer], features, targets, task)
    return heads


def _fit_linear(head: Head, pooled: Tensor, targets: Any, task: Task) -> None:
    """Fit theta and bias to features ``(M, C)`` by full-batch L-BFGS."""
    parameters = [head.theta, head.bias]
    optimizer = torch.optim.LBFGS(parameters, max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        loss = task.loss(F.linear(pooled, head.theta, head.bias), targets)
        loss = loss + HEAD_DECAY * head.theta.square().sum()
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        return loss

    optimizer.step(closure)
    head.zero_grad(set_to_none=True)


def outputs_for(model: nn.Module, task: Task) -> int:
    """K. Raises UnsupportedModel for outputs other than ``(N, K)``, which no head can imitate."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        outputs = task.select(forward(model, example_input(task, next(model.parameters()).device)))
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UnsupportedModel(
            f"learner dis_chn_pruned: its extra losses need a model that gives (N, K), and this one gives {shape}. "
            "Remedy: learner.losses=0 for the model's own loss alone, or learner: channel_pruned"
        )
    return outputs.shape[1]


class _Enough(Exception):
    """All layers have been observed."""


def observe(
    model: nn.Module, layers: Sequence[str], inputs: Inputs, to_the_end: bool = False
) -> tuple[dict[str, Tensor], Any]:
    """(outputs by layer, in execution order; the model's outputs).

    Without ``to_the_end`` the forward pass may stop after the last layer, and the model's outputs are None. Layers that
    do not run are left out; a layer that runs several times has its last output, and of several outputs, as those of a
    recurrent layer, the first.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> Any:
        seen[name] = tensors(output)[0]
        if not to_the_end and len(seen) == len(set(layers)):
            raise _Enough
        return map_tensors(torch.clone, output)  # because an activation behind the layer may work in place

    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name in dict.fromkeys(layers)
    ]
    try:
        with calling_projections(model):
            return seen, forward(model, inputs)
    except _Enough:
        return seen, None
    finally:
        for handle in handles:
            handle.remove()


def as_maps(layer: nn.Module, output: Tensor) -> Tensor:
    """Maps ``(N, C, L)`` of a layer's output: ``(N, C, ...)``, or ``(N, ..., C)`` for linear layers and those for
    sequences."""
    output = output.movedim(-1, 1) if has_features_last(layer) else output
    return output.reshape(*output.shape[:2], -1)
