"""Channel learners: their common keep ratio per channel group, and models with given numbers of units."""

from __future__ import annotations

from torch import nn

from pfray.learner.base import Algorithm, Stage
from pfray.pruning.channels import keep_ratios
from pfray.pruning.channels.keep_ratios import ChannelSettings, graph_of
from pfray.space import CompressionSpace, Plan


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

    def structure(self, plan: Plan) -> dict[str, int]:
        """Number of units that each group keeps."""
        return keep_ratios.kept_counts(graph_of(self.model, self.task), plan)

    def rebuild(self, structure: dict[str, int]) -> nn.Module:
        return keep_ratios.with_counts(self.model, structure, self.task)

    def stages(self, plan: Plan) -> list[Stage]:
        """Stages of group fine-tuning (``group_size``)."""
        plans = keep_ratios.group_plans(plan, self.settings.group_size)
        return [Stage(each, self.settings.group_epochs) for each in plans]
