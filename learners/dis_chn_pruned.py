"""Discrimination-aware channel pruning (Zhuang et al. 2018, "Discrimination-aware Channel Pruning for Deep Neural
Networks"): channels stay for what they tell about the targets, and not only for what they add to the next layer.

P extra losses cut the network into P + 1 stages of about as many channel groups. Notation, equations of the paper:

* O: the output of a layer that reads a group; W_k: its weights for what it reads of unit k.
* L_M = 1/2 mean (O - O')^2, O' of the layer with only some units and O of the network before its stage was pruned (1).
* L_S: the task's loss of a head on the output of the stage's last layer: batch norm, ReLU, average pooling, linear
  (2, 3). The last stage has no head, its L_S is the loss L_f of the model itself.
* L = L_M + lambda L_S (4). Units are taken by the norm |dL/dW_k|_F at W_k = 0: how much L could gain by them.

``finish`` is the whole of it, stage by stage: the network is tuned on L_S + L_f (algorithm 1), then to each group units
are added by that norm, with some steps on the weights W_A of those chosen so far in between (algorithm 2, equation 8).
For the search the norm is computed once, where no unit of the group is chosen yet and all other groups are whole. There
is no better point that all plans share: with all units L_M and its gradient are 0.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pfray import channels
from pfray.cache import cache_dir, content_key, load_tensors, save_tensors, state_bytes
from pfray.channels import ChannelSettings, graph_of
from pfray.config import Training
from pfray.errors import TrainingFailed
from pfray.extra_losses import Head, as_maps, divide, make_heads, observe, outputs_for, tune
from pfray.graph import ChannelGraph, ChannelGroup, Cut, prune
from pfray.learner import Learner
from pfray.measure import channels_last, place
from pfray.ranking import Ranking, keep_highest, lost_scores
from pfray.space import CompressionSpace, Plan
from pfray.task import Task
from pfray.train import reestimate_batch_norm

# Training inputs that the result's batch norms are re-estimated on.
BN_IMAGES = 1000
BATCH = 128

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Settings(ChannelSettings):
    """losses: P, the extra losses; as many as there are groups to divide, less one, is the most.

    weight: lambda, of the discrimination losses against the reconstruction.
    steps, lr, batch_size: optimizer steps of each stage's tuning, of P + 1 stages, and how they are done.
    images: training inputs over which gradients are summed when channels are chosen.
    per_step: channels chosen by one gradient; 1 as in the paper, and as many times slower.
    inner_steps, inner_lr: steps on the weights of the chosen channels after each choice.
    """

    losses: Annotated[int, Field(ge=0)] = 3
    weight: Annotated[float, Field(ge=0)] = 1.0
    steps: Annotated[int, Field(ge=0)] = 100
    lr: Annotated[float, Field(gt=0)] = 0.01
    batch_size: Annotated[int, Field(ge=2)] = 128
    images: Annotated[int, Field(ge=1)] = 256
    per_step: Annotated[int, Field(ge=1)] = 4
    inner_steps: Annotated[int, Field(ge=0)] = 2
    inner_lr: Annotated[float, Field(gt=0)] = 0.01


class DisChnPruned(Learner):
    settings_type = Settings

    @staticmethod
    def space(model: nn.Module, task: Task, settings: Settings) -> CompressionSpace:
        """One knob, the keep ratio, for every group of channels; costs ``macs`` and ``params``.

        Raises UnsupportedModel where a head cannot give what the model gives.
        """
        if settings.losses:
            outputs_for(model, task)
        return channels.channel_space(graph_of(model, task), settings)

    @staticmethod
    def prepare(model: nn.Module, task: Task, settings: Settings) -> Ranking:
        graph = graph_of(model, task)
        return Ranking(graph, cached_scores(model, graph, task, settings))

    @staticmethod
    def error_curves(model: nn.Module, task: Task, settings: Settings) -> dict[str, np.ndarray]:
        """The share of the group's summed gradient norms that goes with the lowest ranked units."""
        return lost_scores(DisChnPruned.prepare(model, task, settings), settings)

    @staticmethod
    def compress(model: nn.Module, plan: Plan, settings: Settings, cache: Ranking, steps: int) -> None:
        """Each group keeps the units that would be the first to be chosen."""
        keep_highest(model, cache, channels.kept_counts(cache.graph, plan))

    @staticmethod
    def finish(model: nn.Module, teacher: nn.Module, plan: Plan, task: Task, settings: Settings) -> nn.Module:
        """The whole algorithm. Raises TrainingFailed where a loss is not finite."""
        graph = graph_of(model, task)
        counts = channels.kept_counts(graph_of(teacher, task), plan)
        # A group with one channel left is none any more.
        groups = [group for group in graph.groups if group.name in counts]
        student = copy.deepcopy(model)
        device = next(student.parameters()).device
        batches = calibration(task, settings.images, device)
        kept: dict[str, np.ndarray] = {}
        removed: list[tuple[Columns, np.ndarray]] = []

        def hold(step: int) -> None:
            for columns, gone in removed:
                columns.clear(gone)

        training = Training(lr=settings.lr, batch_size=settings.batch_size, warmup_epochs=0)
        for number, stage in enumerate(divide(model, groups, settings.losses, task)):
            alive = channels.left(graph, kept)
            head = make_heads(student, [stage], alive, task).get(stage.layer)
            if settings.steps:
                tune(student, stage, head, task, training, settings.steps, number, hold)
            reference = copy.deepcopy(student)
            for group in stage.groups:
                if counts[group.name] == group.units:
                    continue
                alive = channels.left(graph, kept)
                criterion = Criterion(student, reference, task, group, alive, stage.layer, head, settings.weight)
                kept[group.name] = chosen = choose(criterion, counts[group.name], batches, settings)
                gone = np.setdiff1d(np.arange(group.units), chosen)
                removed += [(columns, gone) for columns in columns_of(student, group)]
        prune(student, graph, kept)
        reestimate_batch_norm(student, task, BN_IMAGES, "float32")
        return place(student, device)

    @staticmethod
    def restructure(model: nn.Module, plan: Plan, task: Task, settings: Settings) -> None:
        channels.restructure(model, plan, task)

    @staticmethod
    def stages(plan: Plan, settings: Settings) -> list[tuple[Plan, int]]:
        return channels.stages(plan, settings)


class Columns:
    """The weights W_k of one layer that read the units k of a group."""

    def __init__(self, layer: nn.Module, cut: Cut) -> None:
        self.layer, self.weight = layer, layer.get_parameter("weight")
        self.axis = 0 if getattr(layer, "transposed", False) else 1
        # In a grouped layer a unit has the same place in every group, and the weight has that place once.
        once = cut.index[:, (cut.index < self.weight.shape[self.axis]).all(0)]
        self.index = torch.from_numpy(once).to(self.weight.device)
        self.before = self.weight.detach().clone()

    @torch.no_grad()
    def clear(self, units: np.ndarray) -> None:
        self.weight.index_fill_(self.axis, self.index[units].flatten(), 0.0)

    @torch.no_grad()
    def bring_back(self, units: np.ndarray) -> None:
        """The weights that they had when this object was made."""
        places = self.index[units].flatten()
        self.weight.index_copy_(self.axis, places, self.before.index_select(self.axis, places))

    def squares(self, gradient: Tensor) -> np.ndarray:
        """``(U,)``: |G_k|_F^2 of a gradient of the weight's shape."""
        each = gradient.movedim(self.axis, 0).flatten(1).double().square().sum(1)
        return each[self.index].sum(1).cpu().numpy()

    def mask(self, units: np.ndarray) -> Tensor:
        """1 at the weights of ``units``, of a shape that multiplies the weight."""
        flat = torch.zeros(self.weight.shape[self.axis], device=self.weight.device)
        flat[self.index[units].flatten()] = 1.0
        return flat.view([-1 if axis == self.axis else 1 for axis in range(self.weight.dim())])


def columns_of(model: nn.Module, group: ChannelGroup) -> list[Columns]:
    """Of every layer that reads the group."""
    return [Columns(model.get_submodule(cut.layer), cut) for cut in group.cuts if cut.side == "in"]


@dataclass(frozen=True)
class Criterion:
    """L = L_M + lambda L_S of one group, as a function of a batch (equation 4).

    alive: the positions that are left of a layer's outputs; L_M is about those. L_M of several readers is added.
    """

    student: nn.Module
    reference: nn.Module
    task: Task
    group: ChannelGroup
    alive: Mapping[tuple[str, str], np.ndarray]
    layer: str | None
    head: Head | None
    weight: float

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        readers = [cut.layer for cut in self.group.cuts if cut.side == "in"]
        with torch.no_grad():
            wanted, _ = observe(self.reference, readers, inputs)
        watched = [*readers, self.layer] if self.layer else readers
        seen, outputs = observe(self.student, watched, inputs, to_the_end=self.layer is None)
        loss = inputs.new_zeros(())
        for name, output in wanted.items():  # without those that do not run in evaluation
            loss = loss + 0.5 * F.mse_loss(self._left(name, seen[name]), self._left(name, output))
        if self.weight:
            if self.head is not None and self.layer is not None:
                outputs = self.head(as_maps(self.student.get_submodule(self.layer), seen[self.layer]))
            loss = loss + self.weight * self.task.loss(outputs.float(), targets)
        return loss

    def _left(self, name: str, output: Tensor) -> Tensor:
        maps = as_maps(self.student.get_submodule(name), output)
        stays = self.alive.get((name, "out"))
        return maps if stays is None else maps[:, torch.from_numpy(stays).to(maps.device)]


def calibration(task: Task, images: int, device: torch.device) -> list[Batch]:
    """The first training inputs with their targets, without augmentation."""
    return [
        (channels_last(inputs), targets) for inputs, targets in task.batches(task.train.head(images), BATCH, device)
    ]


def choose(criterion: Criterion, count: int, batches: Sequence[Batch], settings: Settings) -> np.ndarray:
    """The ``count`` units that algorithm 2 chooses, sorted. The student's weights for the others are 0 then."""
    group, columns = criterion.group, columns_of(criterion.student, criterion.group)
    for own in columns:
        own.clear(np.arange(group.units))
    chosen = np.zeros(0, dtype=int)
    step = 0
    with only_trained(criterion, columns) as parameters:
        while len(chosen) < count:
            norms = gradient_norms(criterion, columns, batches)
            norms[chosen] = -1.0
            new = np.argsort(-norms, kind="stable")[: min(settings.per_step, count - len(chosen))]
            chosen = np.append(chosen, new)
            for own in columns:
                own.bring_back(new)
            optimizer = torch.optim.SGD(parameters, lr=settings.inner_lr, momentum=0.9)
            masks = {own.weight: own.mask(chosen) for own in columns}
            for _ in range(settings.inner_steps):
                loss = criterion(*batches[step % len(batches)])
                step += 1
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = None if gradient is None else gradient * masks.get(parameter, 1.0)
                optimizer.step()
            for parameter in parameters:
                parameter.grad = None
    return np.sort(chosen)


def gradient_norms(criterion: Criterion, columns: Sequence[Columns], batches: Sequence[Batch]) -> np.ndarray:
    """``(U,)``: |dL/dW_k|_F over all batches and all layers that read unit k. Raises TrainingFailed if not finite."""
    sums = [torch.zeros_like(own.weight) for own in columns]
    for inputs, targets in batches:
        weights = [own.weight for own in columns]
        gradients = torch.autograd.grad(criterion(inputs, targets), weights, allow_unused=True)
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total += gradient * len(targets)
    samples = sum(len(targets) for _, targets in batches)
    norms = np.sqrt(sum(own.squares(total / samples) for own, total in zip(columns, sums, strict=True)))
    if not np.isfinite(norms).all():
        raise TrainingFailed(
            f"channel group {criterion.group.name}: the gradient is not finite. Remedy: a lower learner.inner_lr or "
            "learner.lr; or check the model's weights and the data's normalization"
        )
    return norms


@contextmanager
def only_trained(criterion: Criterion, columns: Sequence[Columns]) -> Iterator[list[nn.Parameter]]:
    """Evaluation mode, and gradients for nothing but the readers' weights and biases, which are given."""
    models = [criterion.student, criterion.reference, *([criterion.head] if criterion.head else [])]
    wanted = {parameter: parameter.requires_grad for model in models for parameter in model.parameters()}
    for model in models:
        model.eval().requires_grad_(False)
    biases = [own.layer.bias for own in columns if isinstance(own.layer.bias, nn.Parameter)]
    parameters = list(dict.fromkeys([*(own.weight for own in columns), *biases]))
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield parameters
    finally:
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def cached_scores(model: nn.Module, graph: ChannelGraph, task: Task, settings: Settings) -> dict[str, np.ndarray]:
    """``empty_scores`` of the searched groups, from the cache folder where they are known."""
    groups = channels.searched_groups(graph, settings)
    names = [group.name for group in groups]
    loss = f"{getattr(task.loss, '__module__', '')}.{getattr(task.loss, '__qualname__', '<')}"
    if "<" in loss:  # a lambda or an object: its name does not say what it computes
        return empty_scores(model, groups, task, settings)
    key = content_key(
        state_bytes(model),
        repr(model),
        task.fingerprint(),
        loss,
        names,
        settings.losses,
        settings.weight,
        settings.images,
    )
    path = cache_dir() / "discriminative" / f"{key}.safetensors"
    if (found := load_tensors(path)) is None:
        found = {name: torch.from_numpy(own) for name, own in empty_scores(model, groups, task, settings).items()}
        save_tensors(path, found)
    return {name: found[name].numpy() for name in names}


def empty_scores(
    model: nn.Module, groups: Sequence[ChannelGroup], task: Task, settings: Settings
) -> dict[str, np.ndarray]:
    """|dL/dW_k|_F of each group's units where none of them is there, ``(U,)``, everything else as in ``model``."""
    stages = divide(model, groups, settings.losses, task)
    heads = make_heads(model, stages, {}, task)
    student, reference = copy.deepcopy(model), copy.deepcopy(model)
    device = next(model.parameters()).device
    batches = calibration(task, settings.images, device)
    scores = {}
    for stage in stages:
        for group in stage.groups:
            columns, all_units = columns_of(student, group), np.arange(group.units)
            head = heads.get(stage.layer)
            criterion = Criterion(student, reference, task, group, {}, stage.layer, head, settings.weight)
            with only_trained(criterion, columns):
                for own in columns:
                    own.clear(all_units)
                scores[group.name] = gradient_norms(criterion, columns, batches)
                for own in columns:
                    own.bring_back(all_units)
    return scores
