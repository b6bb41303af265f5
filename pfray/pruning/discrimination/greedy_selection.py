"""Greedy selection of a group's units by the gradient of a loss (Zhuang et al. 2018, algorithm 2).

Notation, with the paper's equations: W_k are the weights, in all layers that read a group, for its unit k. At first no
unit is selected and all W_k are 0. The loss is L = L_M + lambda L_S (4). Its gradient norm |dL/dW_k|_F measures how
much unit k could lower L. The units with the largest norm are selected, the weights of all selected units are trained
for some steps (8), and so on.

* L_M = 1/2 mean (O - O')^2, with O' of a layer that reads the group and O of the same layer in a reference model (1).
* L_S: the task's loss of an auxiliary head on some layer's output or, without a head, of the model itself (2, 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.errors import TrainingFailed, UnsupportedModel
from pfray.nn.inputs import Inputs, count, floats
from pfray.pruning.channels.dependency import Cut
from pfray.pruning.channels.graph import ChannelGroup
from pfray.pruning.channels.inside import Axis, positions
from pfray.pruning.discrimination.auxiliary_losses import Head, as_maps, observe
from pfray.task import Task

BATCH = 128

Batch = tuple[Inputs, Any]


class Columns:
    """The weights W_k of one layer that read the units k of a group.

    own: the matrix that reads them in a layer with weights of other forms, such as a recurrent one or an attention.
    """

    def __init__(self, layer: nn.Module, cut: Cut, own: Axis | None = None) -> None:
        self.layer, self.weight = layer, layer.get_parameter(own.tensor if own else "weight")
        self.axis = own.axis if own else 0 if getattr(layer, "transposed", False) else 1
        length = self.weight.shape[self.axis]
        places = positions(length, cut.size, own.parts)[cut.index].reshape(len(cut.index), -1) if own else cut.index
        # In a grouped layer a unit has the same position in every group, and the weight holds it once.
        once = places[:, (places < length).all(0)]
        self.index = torch.from_numpy(once).to(self.weight.device)
        self.before = self.weight.detach().clone()

    @torch.no_grad()
    def clear(self, units: np.ndarray) -> None:
        self.weight.index_fill_(self.axis, self.index[units].flatten(), 0.0)

    @torch.no_grad()
    def bring_back(self, units: np.ndarray) -> None:
        """Restore the weights of ``units`` as they were when this object was made."""
        places = self.index[units].flatten()
        self.weight.index_copy_(self.axis, places, self.before.index_select(self.axis, places))

    def squares(self, gradient: Tensor) -> np.ndarray:
        """|G_k|_F^2, ``(U,)``, of a gradient in the weight's shape."""
        each = gradient.movedim(self.axis, 0).flatten(1).double().square().sum(1)
        return each[self.index].sum(1).cpu().numpy()

    def mask(self, units: np.ndarray) -> Tensor:
        """A mask, broadcastable to the weight, with 1 at the weights of ``units``."""
        flat = torch.zeros(self.weight.shape[self.axis], device=self.weight.device)
        flat[self.index[units].flatten()] = 1.0
        return flat.view([-1 if axis == self.axis else 1 for axis in range(self.weight.dim())])


def columns_of(model: nn.Module, group: ChannelGroup) -> list[Columns]:
    """One ``Columns`` per layer that reads the group."""
    found = [Columns(model.get_submodule(cut.layer), cut) for cut in group.cuts if cut.side == "in" and not cut.inside]
    return found + [
        Columns(model.get_submodule(cut.layer), cut, own)
        for cut in group.cuts
        for own in (cut.inside.axes if cut.inside else ())
        if own.reads
    ]


@dataclass(frozen=True)
class Criterion:
    """L = L_M + lambda L_S of one group, as a function of a batch (equation 4).

    alive: positions of a layer's outputs that stay, the only ones in L_M. L_M of several readers is added up.
    """

    student: nn.Module
    reference: nn.Module
    task: Task
    group: ChannelGroup
    alive: Mapping[tuple[str, str], np.ndarray]
    layer: str | None
    head: Head | None
    weight: float

    def __call__(self, inputs: Inputs, targets: Any) -> Tensor:
        readers = list(dict.fromkeys(cut.layer for cut in self.group.cuts if cut.side == "in"))
        with torch.no_grad():
            wanted, _ = observe(self.reference, readers, inputs)
        watched = [*readers, self.layer] if self.layer else readers
        seen, outputs = observe(self.student, watched, inputs, to_the_end=self.layer is None)
        if not wanted and not self.weight:
            raise UnsupportedModel(
                f"channel group {self.group.name}: no layer that reads it is run as a module, so that learner.weight 0 "
                "leaves no loss. Remedy: learner.weight above 0; or the group in learner.skip"
            )
        loss = torch.zeros((), device=next(self.student.parameters()).device)
        for name, output in wanted.items():  # readers that run in evaluation
            loss = loss + 0.5 * F.mse_loss(self._left(name, seen[name]), self._left(name, output))
        if self.weight:
            if self.head is not None and self.layer is not None:
                outputs = self.head(as_maps(self.student.get_submodule(self.layer), seen[self.layer]))
            else:
                outputs = self.task.select(outputs)
            loss = loss + self.weight * self.task.loss(floats(outputs), targets)
        return loss

    def _left(self, name: str, output: Tensor) -> Tensor:
        layer = self.student.get_submodule(name)
        maps = as_maps(layer, output)
        # An attention gives what its projection gives; the heads are inside.
        stays = self.alive.get((f"{name}.out_proj" if isinstance(layer, nn.MultiheadAttention) else name, "out"))
        if stays is None:
            return maps
        if isinstance(layer, nn.RNNBase):  # the features of one direction, then those of the other
            stays = np.concatenate([stays + start for start in range(0, maps.shape[1], layer.hidden_size)])
        return maps[:, torch.from_numpy(stays).to(maps.device)]


def calibration(task: Task, images: int, device: torch.device) -> list[Batch]:
    """The first training inputs with their targets, without augmentation."""
    return list(task.batches(task.train.head(images), BATCH, device))


def choose(
    criterion: Criterion,
    count: int,
    batches: Sequence[Batch],
    per_step: int,
    inner_steps: int,
    inner_lr: float,
    epsilon: float = 0.0,
) -> np.ndarray:
    """The ``count`` units that algorithm 2 selects, sorted; sets the student's weights for the other units to 0.

    per_step: units selected by one gradient. inner_steps, inner_lr: optimizer steps on the selected weights after each.
    epsilon: once |L(W^(t-1)) - L(W^t)| / L(W^0) is not above it (the paper's stopping condition, section 3.4; 0:
    never), all missing units are selected by one gradient.
    """
    group, columns = criterion.group, columns_of(criterion.student, criterion.group)
    for own in columns:
        own.clear(np.arange(group.units))
    chosen = np.zeros(0, dtype=int)
    step = 0
    losses: list[float] = []  # L(W^0), L(W^1), ...
    with only_trained(criterion, columns) as parameters:
        while len(chosen) < count:
            if epsilon:
                losses.append(_mean_loss(criterion, batches))
            settled = len(losses) > 1 and abs(losses[-2] - losses[-1]) <= epsilon * losses[0]
            norms = gradient_norms(criterion, columns, batches)
            norms[chosen] = -1.0
            missing = count - len(chosen)
            new = np.argsort(-norms, kind="stable")[: missing if settled else min(per_step, missing)]
            chosen = np.append(chosen, new)
            for own in columns:
                own.bring_back(new)
            optimizer = torch.optim.SGD(parameters, lr=inner_lr, momentum=0.9)
            masks = {own.weight: own.mask(chosen) for own in columns}
            for _ in range(inner_steps):
                loss = criterion(*batches[step % len(batches)])
                step += 1
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = None if gradient is None else gradient * masks.get(parameter, 1.0)
                optimizer.step()
            for parameter in parameters:
                parameter.grad = None
    return np.sort(chosen)


@torch.no_grad()
def _mean_loss(criterion: Criterion, batches: Sequence[Batch]) -> float:
    """Mean L over all samples."""
    total = sum(criterion(inputs, targets).item() * count(inputs) for inputs, targets in batches)
    return total / sum(count(inputs) for inputs, _ in batches)


def gradient_norms(criterion: Criterion, columns: Sequence[Columns], batches: Sequence[Batch]) -> np.ndarray:
    """|dL/dW_k|_F, ``(U,)``, over all batches and all layers that read unit k. Raises TrainingFailed if not finite."""
    sums = [torch.zeros_like(own.weight) for own in columns]
    for inputs, targets in batches:
        weights = [own.weight for own in columns]
        gradients = torch.autograd.grad(criterion(inputs, targets), weights, allow_unused=True)
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total += gradient * count(inputs)
    samples = sum(count(inputs) for inputs, _ in batches)
    norms = np.sqrt(sum(own.squares(total / samples) for own, total in zip(columns, sums, strict=True)))
    if not np.isfinite(norms).all():
        raise TrainingFailed(
            f"channel group {criterion.group.name}: the gradient is not finite. Remedy: a lower learner.inner_lr or "
            "learner.lr; or check the model's weights and the data's normalization"
        )
    return norms


@contextmanager
def only_trained(criterion: Criterion, columns: Sequence[Columns]) -> Iterator[list[nn.Parameter]]:
    """Evaluation mode with gradients for the readers' weights and biases only, which are yielded."""
    models = [criterion.student, criterion.reference, *([criterion.head] if criterion.head else [])]
    wanted = {parameter: parameter.requires_grad for model in models for parameter in model.parameters()}
    for model in models:
        model.eval().requires_grad_(False)
    found = [getattr(own.layer, "bias", None) for own in columns]
    biases = [bias for bias in found if isinstance(bias, nn.Parameter)]
    parameters = list(dict.fromkeys([*(own.weight for own in columns), *biases]))
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield parameters
    finally:
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)
