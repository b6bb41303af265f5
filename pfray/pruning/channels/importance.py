"""Channel groups pruned by an importance score for each unit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from pfray.nn.modes import place
from pfray.pruning.channels import keep_ratios
from pfray.pruning.channels.graph import ChannelGraph, ChannelGroup
from pfray.pruning.channels.keep_ratios import ChannelSettings
from pfray.pruning.channels.prune import prune

# Kinds of layers with one filter per channel that they produce or pass on.
WITH_FILTERS = ("CONV", "DEPTHWISE_CONV", "LINEAR", "EMBED")


@dataclass(frozen=True)
class Ranking:
    """scores: ``(U,)`` by group, higher for units that should stay."""

    graph: ChannelGraph
    scores: dict[str, np.ndarray]


def lost_scores(ranking: Ranking, settings: ChannelSettings) -> dict[str, np.ndarray]:
    """Error curves: the share of a group's summed scores that its lowest ranked units hold."""
    falling = {name: np.sort(scores)[::-1] for name, scores in ranking.scores.items()}

    def lost(group: ChannelGroup, count: int) -> float:
        return float(falling[group.name][count:].sum() / max(falling[group.name].sum(), 1e-30))

    return keep_ratios.error_curves(ranking.graph, settings, lost)


def keep_highest(model: nn.Module, ranking: Ranking, counts: Mapping[str, int]) -> nn.Module:
    """A copy in which each group keeps its ``count`` units of the highest scores, of equal ones the first."""
    pruned = copy.deepcopy(model)
    kept = {name: np.argsort(-ranking.scores[name], kind="stable")[:count] for name, count in counts.items()}
    prune(pruned, ranking.graph, kept)
    return place(pruned, next(model.parameters()).device)


def filter_magnitudes(layer: Any, power: int = 1) -> np.ndarray:
    """Sum of |w|^power over the weights of each output channel, ``(O,)``."""
    weight = layer.weight.detach().double().abs() ** power
    if isinstance(layer, nn.Embedding):
        return weight.sum(0).cpu().numpy()
    if getattr(layer, "transposed", False):
        # (I, O / groups, ...), the inputs sorted by group.
        return weight.flatten(2).sum(2).unflatten(0, (layer.groups, -1)).sum(1).flatten().cpu().numpy()
    return weight.flatten(1).sum(1).cpu().numpy()
