"""Discrimination-aware channel pruning (Zhuang et al. 2018, "Discrimination-aware Channel Pruning for Deep Neural
Networks"): keeps channels for their information on the targets, not only for their contribution to the next layer.

P extra losses divide the network into P + 1 stages with about equal numbers of channel groups. A stage's loss L_S is
the task's loss of a head on the output of the stage's last layer
(``pfray/pruning/discrimination/auxiliary_losses.py``); the last stage has no head, its L_S is the model's loss L_f.

``finish`` is the full method, stage by stage: the network is tuned on L_S + L_f (the paper's algorithm 1), then units
are added to each group by the gradient norm |dL/dW_k|_F (algorithm 2,
``pfray/pruning/discrimination/greedy_selection.py``), with the network before the pruning of this stage as the
reference. For the search the norm is computed once, with no unit of the group chosen and all other groups complete. No
better point is shared by all plans: with all units L_M and its gradient are 0.

Differences. The defaults take a hundredth of PocketFlow's steps or less: 100 for the tuning of a stage instead of
10,000 (``dcp_nb_iters_block``), and 2 after each choice of 4 channels instead of 500 after every single one
(``dcp_nb_iters_layer``); SGD with momentum instead of Adam at 0.001. With the defaults it is a short DCP; ``steps``,
``inner_steps`` and ``per_step`` make it longer. The number of channels is always the plan's, as in the paper's DCP and
in PocketFlow: ``epsilon`` ends the greedy choice, as the paper's stopping condition does, but does not determine the
number (the paper's DCP-Adapt), because a target does.
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

from learners._channels import ChannelAlgorithm
from pfray.learner.base import Compressed
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
from pfray.utils.cache import cache_dir, cache_key, made_once


@dataclass(frozen=True)
class Settings(ChannelSettings):
    """losses: P, the extra losses; at most the number of groups minus one.

    weight: lambda, weight of the discrimination losses relative to the reconstruction.
    steps, lr, batch_size: optimizer steps, learning rate and batch size of the tuning of each of the P + 1 stages.
    images: training inputs over which gradients are summed to choose channels.
    per_step: channels chosen per gradient; 1 is the paper's, and slower by the same factor.
    inner_steps, inner_lr: steps on the weights of the chosen channels after each choice, and their learning rate.
    epsilon: once a choice changes the loss by at most this share of the loss without channels, the remaining channels
        are chosen by one gradient (stopping condition of section 3.4). 0 never stops early.
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


class DisChnPruned(ChannelAlgorithm):
    settings: Settings
    settings_type = Settings

    def space(self) -> CompressionSpace:
        """One knob, the keep ratio, per channel group; costs ``macs`` and ``params``.

        Raises UnsupportedModel if a head cannot produce the model's kind of output.
        """
        if self.settings.losses:
            outputs_for(self.model, self.task)
        return super().space()

    @cached_property
    def ranking(self) -> Ranking:
        """Gradient norms of the searched groups' units."""
        graph = graph_of(self.model, self.task)
        return Ranking(graph, cached_scores(self.model, graph, self.task, self.settings))

    def error_curves(self) -> dict[str, np.ndarray]:
        """Share of the group's summed gradient norms that the removed, lowest-ranked units hold."""
        return lost_scores(self.ranking, self.settings)

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """Keeps the units of each group that would be chosen first."""
        return Compressed(keep_highest(self.model, self.ranking, self.structure(plan)))

    def finish(self, plan: Plan, start: nn.Module | None = None) -> Compressed:
        """The full method. Raises TrainingFailed if a loss is not finite."""
        model, task, settings = self.model if start is None else start, self.task, self.settings
        graph, structure = graph_of(model, task), self.structure(plan)
        counts = keep_ratios.groups_left(model, structure, task)
        student = copy.deepcopy(model)
        device = next(student.parameters()).device
        batches = calibration(task, settings.images, device)
        kept: dict[str, np.ndarray] = {}
        removed: list[tuple[Columns, np.ndarray]] = []

        def clear_removed(step: int) -> None:
            for columns, gone in removed:
                columns.clear(gone)

        pace = settings.per_step, settings.inner_steps, settings.inner_lr, settings.epsilon
        training = Training(lr=settings.lr, batch_size=settings.batch_size, warmup_epochs=0)
        for number, stage in enumerate(divide(model, list(counts), settings.losses, task)):
            alive = kept_positions(graph, kept)
            head = make_heads(student, [stage], alive, task).get(stage.layer)
            if settings.steps:
                tune(student, stage, head, task, training, settings.steps, number, clear_removed)
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


def cached_scores(model: nn.Module, graph: ChannelGraph, task: Task, settings: Settings) -> dict[str, np.ndarray]:
    """``empty_scores`` of the searched groups, read from the cache folder if present."""
    groups = keep_ratios.searched_groups(graph, settings)
    names = [group.name for group in groups]
    loss = f"{getattr(task.loss, '__module__', '')}.{getattr(task.loss, '__qualname__', '<')}"
    if "<" in loss:  # a lambda or an object: its name does not identify the computation
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
    found = made_once(
        path,
        lambda: {name: torch.from_numpy(own) for name, own in empty_scores(model, groups, task, settings).items()},
    )
    return {name: found[name].numpy() for name in names}


def empty_scores(
    model: nn.Module, groups: Sequence[ChannelGroup], task: Task, settings: Settings
) -> dict[str, np.ndarray]:
    """|dL/dW_k|_F of each group's units, ``(U,)``, at ``model`` without any unit of the group."""
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
