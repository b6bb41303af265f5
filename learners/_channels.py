"""Channel learners: their common keep ratio per channel group, and models with given numbers of units."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from pfray.errors import UnsupportedModel
from pfray.learner.base import Algorithm, Stage
from pfray.learner.pipeline_space import PipelineSpace
from pfray.pruning.channels import keep_ratios
from pfray.pruning.channels.keep_ratios import ChannelSettings, graph_of, keep_graph
from pfray.pruning.layers.channel_groups import GroupsOfLayers, JointCosts, predictable
from pfray.space import CompressionSpace, Plan
from pfray.task import example_input


class ChannelAlgorithm(Algorithm):
    """Base of the channel learners. Each adds which channels stay: ``compress``, ``finish`` and ``error_curves``."""

    settings: ChannelSettings
    permanent = True
    has_finish = True
    has_error_curves = True
    has_rungs = True
    rounding_setting = "round_to"

    def space(self) -> CompressionSpace:
        """One knob, the keep ratio, per channel group; costs ``macs``, ``params`` and ``size_bytes``."""
        return keep_ratios.channel_space(graph_of(self.model, self.task), self.settings)

    def space_behind(self, earlier: Algorithm) -> PipelineSpace | None:
        """Layers to remove and channels to keep, with the costs of both together.

        Layers whose removal would change the groups of others have no knob. Raises UnsupportedModel if none is left.
        """
        found = earlier.removable()
        if found is None:
            return None
        joint, depth, width = GroupsOfLayers(found, graph_of(self.model, self.task)), earlier.space(), self.space()
        names = predictable(self.model, joint, depth.names, example_input(self.task))
        if not names:
            raise UnsupportedModel(
                f"no layer of {type(self.model).__name__} can be removed without changing the channel groups of others "
                f"({len(depth.names)} tried). Remedy: only one of the two learners"
            )
        alone = JointCosts(joint, tuple(names), ())
        depth = CompressionSpace(
            tuple(knob for knob in depth.knobs if knob.name in names), alone, weights_left=alone.weights
        )
        both = JointCosts(joint, tuple(names), tuple(width.names))
        return PipelineSpace(
            (*depth.knobs, *width.knobs), both, weights_left=both.weights, parts=(depth, width), idle=both.idle
        )

    def behind(self, earlier: Algorithm, plan: Plan, model: nn.Module) -> Algorithm:
        """The groups that are left are known without tracing ``model``; those skipped may be gone."""
        later = super().behind(earlier, plan, model)
        if found := earlier.removable():
            gone = [name for name in found.names if plan.get(name, 1.0) < 0.5]
            left = GroupsOfLayers(found, graph_of(self.model, self.task)).without(gone)
            keep_graph(model, self.task, left)
            names = {group.name for group in left.groups}
            later.settings = replace(self.settings, skip=tuple(name for name in self.settings.skip if name in names))
        return later

    def structure(self, plan: Plan) -> dict[str, int]:
        """Number of units that each group keeps."""
        return keep_ratios.kept_counts(graph_of(self.model, self.task), plan)

    def rebuild(self, structure: dict[str, int]) -> nn.Module:
        return keep_ratios.with_counts(self.model, structure, self.task)

    def stages(self, plan: Plan) -> list[Stage]:
        """Stages of group fine-tuning (``group_size``)."""
        plans = keep_ratios.group_plans(plan, self.settings.group_size)
        return [Stage(each, self.settings.group_epochs) for each in plans]
