"""Filter pruning by a ranking: removes the channels of lowest score, without reconstruction.

The three rankings are the baselines of every other channel learner: ``l1`` and ``taylor`` (``scores.py``), and for a
unit's channel k ``bn_scale`` (Liu et al. 2017, section 3): |gamma_k|, the scale of the batch norm, over all batch norms
of the group.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import nn

from learners._channels import ChannelAlgorithm
from pfray.errors import UnsupportedModel
from pfray.learner.base import Compressed, Stage
from pfray.pruning.channels import keep_ratios
from pfray.pruning.channels.graph import ChannelGroup
from pfray.pruning.channels.importance import Ranking, keep_highest, lost_scores
from pfray.pruning.channels.keep_ratios import ChannelSettings, graph_of
from pfray.pruning.channels.scores import l1_scores, taylor_scores
from pfray.space import CompressionSpace, Plan
from pfray.task import Task
from pfray.training.batch_norm import reestimate_batch_norm


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
