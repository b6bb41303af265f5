"""Channels removed by LASSO, with and without what is made up for them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from learners.channel_pruned import ChannelPruned, Settings
from pfray.measure.evaluation import answers_of
from pfray.pruning.channels.keep_ratios import kept_counts
from pfray.pruning.channels.prune import prune
from pfray.space import Plan
from pfray.task import Task

SETTINGS = Settings(images=500, positions=20, round_to=2)


def plainly_removed(model: nn.Module, plan: Plan, task: Task) -> nn.Module:
    """The channels of ``compress``, nothing else."""
    calibration, pruned = ChannelPruned(model, task, SETTINGS).calibration, copy.deepcopy(model)
    counts = kept_counts(calibration.graph, plan)
    prune(pruned, calibration.graph, {group: calibration.kept[group][count] for group, count in counts.items()})
    return pruned


def distance(model: nn.Module, teacher: nn.Module, task: Task) -> float:
    """The squared error of the outputs on images that did not calibrate, as a share of their variance."""
    answers = [answers_of(net, task, task.validation) for net in (model, teacher)]
    own, other = (torch.cat([batch.outputs for batch in batches]) for batches in answers)
    return ((own - other).square().sum() / (other - other.mean(0)).square().sum()).item()
