"""Discrimination-aware channel pruning (Zhuang et al. 2018, "Discrimination-aware Channel Pruning for Deep Neural
Networks"): channels stay for what they tell about the targets, and not only for what they add to the next layer.

P extra losses cut the network into P + 1 stages of about as many channel groups. A stage's loss L_S is the task's, of
a head on the output of the stage's last layer (``pfray/pruning/discrimination/auxiliary_losses.py``); the last stage
has no head, its L_S is the loss L_f of the model itself.

``finish`` is the whole of it, stage by stage: the network is tuned on L_S + L_f (the paper's algorithm 1), then to each
group units are added by the gradient's norm |dL/dW_k|_F (algorithm 2,
``pfray/pruning/discrimination/greedy_selection.py``), with the network
before its stage was pruned as the reference. For the search the norm is computed once, where no unit of the group is
chosen yet and all other groups are whole. There is no better point that all plans share: with all units L_M and its
gradient are 0.

What differs. The defaults are a hundredth of PocketFlow's steps and less: 100 for each stage's tuning where its
``dcp_nb_iters_block`` is 10,000, and 2 after each choice of 4 channels where ``dcp_nb_iters_layer`` is 500 after each
single one (Adam at 0.001 there, SGD with momentum here). A result with the defaults is that of a short DCP; ``steps``,
``inner_steps`` and ``per_step`` are there for more. And the number of channels is always the plan's, as in the paper's
DCP and in PocketFlow: ``epsilon`` ends the choice by turns, as the paper's stopping condition does, but the number is
not what has been chosen until then (the paper's DCP-Adapt), because a target asks for a number.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import nn

from pfray.learner.base import Algorithm, Compressed, Stage
from pfray.nn.fingerprint import model_parts
from pfray.nn.modes import place
from pfray.pruning.channels import keep_ratios
from pfray.pruning.channels.graph import ChannelGraph, ChannelGroup
from pfray.pruning.channels.importance import Ranking, keep_highest, lost_scores
from pfray.pruning.channels.keep_ratios import ChannelSettings, graph_of
from pfray.pruning.channels.prune import kept_positions, prune
from pfray.pruning.discrimination.auxiliary_losses import divide, make_heads, outputs_for, tune
from pfray.pruning.discrimination.greedy_selection import (
    Columns,
    Criterion,
    calibration,
    choose,
    columns_of,
    gradient_norms,
    only_trained,
)
from pfray.space import CompressionSpace, Plan
from pfray.task import Task
from pfray.training.batch_norm import BN_IMAGES, reestimate_batch_norm
from pfray.training.settings import Training
from pfray.utils.cache import cache_dir, cache_key, load_tensors, save_tensors


@dataclass(frozen=True)
class Settings(ChannelSettings):
    """losses: P, the extra losses; as many as there are groups to divide, less one, is the most.

    weight: lambda, of the discrimination losses against the reconstruction.
    steps, lr, batch_size: optimizer steps of each stage's tuning, of P + 1 stages, and how they are done.
    images: training inputs over which gradients are summed when channels are chosen.
    per_step: channels chosen by one gradient; 1 as in the paper, and as many times slower.
    inner_steps, inner_lr: steps on the weights of the chosen channels after each choice.
    epsilon: where a choice changes the loss by no more than this share of the loss without any channel, the channels
        that are missing are chosen by one gradient (the stopping condition of section 3.4). 0: each in its turn.
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
    epsilon: Annotated[float, Field(ge=0)] = 0.0


class DisChnPruned(Algorithm):
    settings: Settings
    settings_type = Settings
    permanent = True
    has_finish = True
    has_error_curves = True

    def space(self) -> CompressionSpace:
        """One knob, the keep ratio, for every group of channels; costs ``macs`` and ``params``.

        Raises UnsupportedModel where a head cannot give what the model gives.
        """
        if self.settings.losses:
            outputs_for(self.model, self.task)
        return keep_ratios.channel_space(graph_of(self.model, self.task), self.settings)

    @cached_property
    def ranking(self) -> Ranking:
        """Gradient norms of the searched groups' units."""
        graph = graph_of(self.model, self.task)
        return Ranking(graph, cached_scores(self.model, graph, self.task, self.settings))

    def error_curves(self) -> dict[str, np.ndarray]:
        """The share of the group's summed gradient norms that goes with the lowest ranked units."""
        return lost_scores(self.ranking, self.settings)

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """Each group keeps the units that would be the first to be chosen."""
        return Compressed(keep_highest(self.model, self.ranking, self.structure(plan)))

    def finish(self, plan: Plan, start: nn.Module | None = None) -> Compressed:
        """The whole algorithm. Raises TrainingFailed where a loss is not finite."""
        model, task, settings = self.model if start is None else start, self.task, self.settings
        graph, structure = graph_of(model, task), self.structure(plan)
        counts = keep_ratios.groups_left(model, structure, task)
        student = copy.deepcopy(model)
        device = next(student.parameters()).device
        batches = calibration(task, settings.images, device)
        kept: dict[str, np.ndarray] = {}
        removed: list[tuple[Columns, np.ndarray]] = []

        def hold(step: int) -> None:
            for columns, gone in removed:
                columns.clear(gone)

        pace = settings.per_step, settings.inner_steps, settings.inner_lr, settings.epsilon
        training = Training(lr=settings.lr, batch_size=settings.batch_size, warmup_epochs=0)
        for number, stage in enumerate(divide(model, list(counts), settings.losses, task)):
            alive = kept_positions(graph, kept)
            head = make_heads(student, [stage], alive, task).get(stage.layer)
            if settings.steps:
                tune(student, stage, head, task, training, settings.steps, number, hold)
            reference = copy.deepcopy(student)
            for group in stage.groups:
                if counts[group] == group.units:
                    continue
                alive = kept_positions(graph, kept)
                criterion = Criterion(student, reference, task, group, alive, stage.layer, head, settings.weight)
                kept[group.name] = chosen = choose(criterion, counts[group], batches, *pace)
                gone = np.setdiff1d(np.arange(group.units), chosen)
                removed += [(columns, gone) for columns in columns_of(student, group)]
        prune(student, graph, kept)
        reestimate_batch_norm(student, task, BN_IMAGES, "float32")
        return Compressed(place(student, device), structure=structure)

    def structure(self, plan: Plan) -> dict[str, int]:
        """The units that each group keeps."""
        return keep_ratios.kept_counts(graph_of(self.model, self.task), plan)

    def rebuild(self, structure: dict[str, int]) -> nn.Module:
        return keep_ratios.with_counts(self.model, structure, self.task)

    def stages(self, plan: Plan) -> list[Stage]:
        """Group fine-tuning."""
        plans = keep_ratios.group_plans(plan, self.settings.group_size)
        return [Stage(each, self.settings.group_epochs) for each in plans]


def cached_scores(model: nn.Module, graph: ChannelGraph, task: Task, settings: Settings) -> dict[str, np.ndarray]:
    """``empty_scores`` of the searched groups, from the cache folder where they are known."""
    groups = keep_ratios.searched_groups(graph, settings)
    names = [group.name for group in groups]
    loss = f"{getattr(task.loss, '__module__', '')}.{getattr(task.loss, '__qualname__', '<')}"
    if "<" in loss:  # a lambda or an object: its name does not say what it computes
        return empty_scores(model, groups, task, settings)
    key = cache_key(
        *model_parts(model, task),
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
