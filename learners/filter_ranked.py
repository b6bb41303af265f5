"""Filter pruning by a ranking: removes the channels of lowest score, without reconstruction.

The three rankings are the baselines of every other channel learner. Notation: a unit u of a group has channels in
several layers and the score s_u. For a convolution's output channel k with the filter W_k, its feature map z_k of M
positions, and the loss C:

* ``l1`` (Li et al. 2017, section 3.1): sum of |W_k|, over all layers that produce the unit.
* ``bn_scale`` (Liu et al. 2017, section 3): |gamma_k|, the scale of the batch norm, over all batch norms of the group.
* ``taylor`` (Molchanov et al. 2017, equations 7 and 8): |1/M sum_m dC/dz_k,m z_k,m|, the first-order change of the loss
  if z_k were 0, per sample, then averaged. The feature map is the input of the next layer. Each layer's scores are
  divided by their l2 norm (section 2.3), then summed over all layers that read the unit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from learners._channels import ChannelAlgorithm
from pfray.errors import UnsupportedModel
from pfray.learner.base import Compressed, Stage
from pfray.nn.attention import spell_out
from pfray.nn.inputs import count, floats, map_tensors
from pfray.nn.layers import has_features_last
from pfray.nn.modes import forward
from pfray.pruning.channels import keep_ratios
from pfray.pruning.channels.graph import ChannelGroup
from pfray.pruning.channels.importance import WITH_FILTERS, Ranking, filter_magnitudes, keep_highest, lost_scores
from pfray.pruning.channels.keep_ratios import ChannelSettings, graph_of
from pfray.space import CompressionSpace, Plan
from pfray.task import Task
from pfray.training.batch_norm import reestimate_batch_norm

# Samples whose feature maps and gradients are in memory at once.
BATCH = 64


@dataclass(frozen=True)
class Settings(ChannelSettings):
    """criterion: ranking of channels, ``l1``, ``bn_scale`` or ``taylor``.

    images: training inputs for ``taylor``, and for re-estimating batch norm before a retraining.
    iterations: rounds of about equal keep ratio that lead to the chosen plan, each with a new ranking (Molchanov et al.
        2017, section 2) and ``iteration_epochs`` of training in between. 1 prunes in one shot.
    """

    criterion: Literal["l1", "bn_scale", "taylor"] = "l1"
    images: Annotated[int, Field(ge=1)] = 1000
    iterations: Annotated[int, Field(ge=1)] = 1
    iteration_epochs: Annotated[int, Field(ge=1)] = 1

    def __post_init__(self) -> None:
        if self.iterations > 1 and self.group_size:
            raise ValueError(
                f"iterations is {self.iterations} and group_size is {self.group_size}; both prune in rounds. "
                "Remedy: leave one of them out"
            )


class FilterRanked(ChannelAlgorithm):
    settings: Settings
    settings_type = Settings

    def space(self) -> CompressionSpace:
        """One knob, the keep ratio, per channel group; costs ``macs`` and ``params``.

        Raises UnsupportedModel if the criterion does not apply to a group.
        """
        space = super().space()
        if self.settings.criterion == "bn_scale":
            graph = graph_of(self.model, self.task)
            check_scaled(self.model, keep_ratios.searched_groups(graph, self.settings))
        return space

    @cached_property
    def ranking(self) -> Ranking:
        """Scores of the units of the searched groups."""
        graph = graph_of(self.model, self.task)
        groups = keep_ratios.searched_groups(graph, self.settings)
        return Ranking(graph, rank(self.model, groups, self.task, self.settings))

    def error_curves(self) -> dict[str, np.ndarray]:
        """Share of the group's summed scores that the removed, lowest-ranked units hold."""
        return lost_scores(self.ranking, self.settings)

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        return Compressed(keep_highest(self.model, self.ranking, self.structure(plan)))

    def finish(self, plan: Plan, start: nn.Module | None = None) -> Compressed:
        """Same as ``compress``, but ranked on ``start``, and with re-estimated batch norms."""
        model, structure = self.model if start is None else start, self.structure(plan)
        counts = keep_ratios.groups_left(model, structure, self.task)
        ranking = Ranking(graph_of(model, self.task), rank(model, counts, self.task, self.settings))
        pruned = keep_highest(model, ranking, {group.name: count for group, count in counts.items()})
        reestimate_batch_norm(pruned, self.task, self.settings.images, "float32")
        return Compressed(pruned, structure=structure)

    def stages(self, plan: Plan) -> list[Stage]:
        """Keep ratios r^(1/n), r^(2/n), ... before the plan's own r, for n ``iterations``; or group fine-tuning."""
        iterations = self.settings.iterations
        if iterations == 1 or all(ratio >= 1 for ratio in plan.values()):
            return super().stages(plan)
        shares = [step / iterations for step in range(1, iterations)]
        plans = [{n: ratio**share for n, ratio in plan.items()} for share in shares]
        return [Stage(each, self.settings.iteration_epochs) for each in plans]


def rank(model: nn.Module, groups: Iterable[ChannelGroup], task: Task, settings: Settings) -> dict[str, np.ndarray]:
    """Scores of each group's units, ``(U,)``, by the criterion; ``model`` is not changed.

    Raises UnsupportedModel if the criterion does not apply to a group, or a score is not finite.
    """
    groups = list(groups)
    if settings.criterion == "taylor":
        scores = taylor_scores(model, groups, task, settings.images)
    elif settings.criterion == "bn_scale":
        check_scaled(model, groups)
        scores = {group.name: scale_scores(model, group) for group in groups}
    else:
        scores = {group.name: l1_scores(model, group) for group in groups}
    for name, own in scores.items():
        if not np.isfinite(own).all():
            raise UnsupportedModel(
                f"channel group {name} has scores by {settings.criterion} that are not finite. Remedy: check the "
                "model's weights and the data's normalization"
            )
    return scores


def l1_scores(model: nn.Module, group: ChannelGroup) -> np.ndarray:
    """l1 norms ``(U,)`` of all filters that produce a unit, without biases."""
    total = np.zeros(group.units)
    for cut in group.cuts:
        if cut.inside is not None:
            total += cut.inside.magnitudes(model.get_submodule(cut.layer), cut.size)[cut.index].sum(1)
        if cut.side == "out" and cut.kind in WITH_FILTERS:
            total += filter_magnitudes(model.get_submodule(cut.layer))[cut.index].sum(1)
    return total


def scale_scores(model: nn.Module, group: ChannelGroup) -> np.ndarray:
    """Sum of |gamma| over all batch norms of a unit, ``(U,)``; see ``check_scaled``."""
    total = np.zeros(group.units)
    for layer, index in _scaled_norms(model, group):
        total += layer.weight.detach().double().abs().cpu().numpy()[index].sum(1)
    return total


def check_scaled(model: nn.Module, groups: Iterable[ChannelGroup]) -> None:
    """Raise UnsupportedModel for groups without a scaling batch norm: their ranking would be arbitrary."""
    without = [group.name for group in groups if not _scaled_norms(model, group)]
    if without:
        raise UnsupportedModel(
            f"learner.criterion bn_scale: no batch norm with a scale in the channel groups {', '.join(without)}. "
            "Remedy: learner.criterion=l1 or taylor, or these groups in learner.skip"
        )


def _scaled_norms(model: nn.Module, group: ChannelGroup) -> list[tuple[Any, np.ndarray]]:
    norms = [(model.get_submodule(cut.layer), cut.index) for cut in group.cuts if cut.kind == "BN"]
    return [(norm, index) for norm, index in norms if norm.weight is not None]


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
