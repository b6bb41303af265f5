"""Pruning a model to the units of each channel group that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from pfray.pruning.channels.graph import ChannelGraph
from pfray.pruning.channels.layer_entries import Removal, removals_of, remove_entries

# The units that stay, by group.
Kept = Mapping[str, Sequence[int] | np.ndarray]


def prune(model: nn.Module, graph: ChannelGraph, kept: Kept) -> None:
    """Take channels out of ``model``, in place: the graph's own model or any copy of it.

    kept: the units that stay, by group; groups that are not named stay whole. Raises ValueError for an unknown group or
    unit and if no unit would stay, UnsupportedModel for a model of another structure than the graph's.
    """
    remove_entries(model, _planned(graph, kept))


def kept_positions(graph: ChannelGraph, kept: Kept) -> dict[tuple[str, str], np.ndarray]:
    """Positions that ``prune`` leaves, by (layer, side), for every side that loses some. Raises ValueError likewise."""
    gone = [own for own in _planned(graph, kept) if own.kind != "SETTING"]
    return {(own.layer, own.side): np.setdiff1d(np.arange(own.size), own.positions) for own in gone}


def _planned(graph: ChannelGraph, kept: Kept) -> list[Removal]:
    groups = {group.name: group for group in graph.groups}
    parts = []
    for name, units in kept.items():
        if name not in groups:
            raise ValueError(f"no channel group '{name}'. Allowed: {', '.join(groups) or 'none'}")
        stay, count = np.unique(np.asarray(units, dtype=int)), groups[name].units
        if not len(stay) or stay[0] < 0 or stay[-1] >= count:
            raise ValueError(f"channel group {name} cannot keep {units}. Allowed: one or more of 0 to {count - 1}")
        parts.append((groups[name].cuts, np.setdiff1d(np.arange(count), stay)))
    return removals_of(parts)
