"""Calibration of channel pruning: moments of the layers' inputs, and the units to keep of every group and count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import nn

from pfray.nn.dense import can_shift, is_dense, norms_behind
from pfray.nn.im2col import rows_of_channels, weight_rows
from pfray.pruning.channels.dependency import Cut
from pfray.pruning.channels.graph import ChannelGraph, ChannelGroup
from pfray.pruning.channels.importance import WITH_FILTERS, filter_magnitudes
from pfray.pruning.channels.keep_ratios import graph_of
from pfray.pruning.channels.prune import kept_positions
from pfray.pruning.channels.scores import l1_scores, taylor_scores
from pfray.pruning.reconstruction import lasso, least_squares
from pfray.pruning.reconstruction.covariance import Moments, cached_moments, input_moments, moments_key
from pfray.task import Task, example_input
from pfray.utils.cache import content_key

# Criteria that rank units; all others choose them by LASSO.
SCORED = ("l1", "taylor")


@dataclass(frozen=True)
class Calibration:
    """Quantities independent of the plan.

    kept: kept units, by group and count. norms: the batch norm after a layer, by the layer's name. measure: gives
    ``moments``.
    """

    graph: ChannelGraph
    kept: dict[str, list[np.ndarray]]
    norms: dict[str, str]
    measure: Callable[[], dict[str, Moments]]

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Moments of the inputs of each layer that reads channels of a group; measured if they are needed."""
        return self.measure()


def calibrate(model: nn.Module, task: Task, images: int, positions: int, criterion: str) -> Calibration:
    """Chooses the units of every group and count by the criterion; LASSO takes one pass over the calibration images.

    Moments and LASSO paths are computed once on a machine.
    """
    graph = graph_of(model, task)
    norms = norms_behind(model, example_input(task, next(model.parameters()).device))
    layers = read_layers(model, graph)
    key = moments_key(model, task, layers, images, positions)

    @cache
    def measure() -> dict[str, Moments]:
        return _about_means(model, norms, cached_moments(model, task, layers, images, positions, key))

    parts = [(g.name, g.units, [(cut.layer, cut.side, cut.size, cut.index.tobytes()) for cut in g.cuts])
             for g in graph.groups]  # fmt: skip
    if criterion in SCORED:
        kept = ranked(model, graph.groups, task, images, criterion)
    else:
        kept = lasso.cached_selections(
            content_key(key, parts), lambda: {g.name: selection_gram(model, g, measure()) for g in graph.groups}
        )
    return Calibration(graph, kept, norms, measure)


def after_removal(
    calibration: Calibration, model: nn.Module, task: Task, images: int, positions: int, criterion: str
) -> Calibration:
    """Calibration of ``model``, which has lost layers since ``calibration``, without another pass over the images.

    A layer that reads as many channels as before keeps the moments of its inputs, as each layer does whose inputs come
    from pruned ones. Only inputs that are new, of layers behind removed ones, are measured.
    """
    graph, norms = graph_of(model, task), calibration.norms
    before = {group.name: _readers_of(group) for group in calibration.graph.groups}
    changed = [group for group in graph.groups if before[group.name] != _readers_of(group)]
    kept = {group.name: calibration.kept[group.name] for group in graph.groups}

    @cache
    def measure() -> tuple[dict[str, Moments], list[str]]:
        layers = read_layers(model, graph)
        moments = {name: own for name, own in calibration.moments.items() if name in layers}
        new = [name for name in layers if name not in moments or len(moments[name].mean) != len(_rows_of(model, name))]
        if new:
            moments |= _about_means(model, norms, input_moments(model, task, new, images, positions))
        return moments, new

    if criterion not in SCORED:
        moments, new = measure()
        known = {group.name for group in changed}
        changed += [group for group in graph.groups if group.name not in known and {*new} & before[group.name]]
        kept |= {group.name: lasso.lasso_selections(selection_gram(model, group, moments)) for group in changed}
    elif changed:
        kept |= ranked(model, changed, task, images, criterion)
    return Calibration(graph, kept, norms, lambda: measure()[0])


def _about_means(model: nn.Module, norms: dict[str, str], moments: dict[str, Moments]) -> dict[str, Moments]:
    """Moments about the mean where a bias or a batch norm can take over the mean contribution of removed channels.

    Without one the weights have to compensate for it, and it counts as error.
    """
    return {name: own if can_shift(model, name, norms) else own.uncentered() for name, own in moments.items()}


def ranked(
    model: nn.Module, groups: Sequence[ChannelGroup], task: Task, images: int, criterion: str
) -> dict[str, list[np.ndarray]]:
    """Kept units of each group, by count, by the scores ``l1`` or ``taylor``."""
    if criterion == "l1":
        return {group.name: highest(l1_scores(model, group)) for group in groups}
    return {name: highest(own) for name, own in taylor_scores(model, groups, task, images).items()}


def highest(scores: np.ndarray) -> list[np.ndarray]:
    """The k units of the highest scores ``(U,)``, of equal ones the first, for every count k = 0 ... U; sorted."""
    order = np.argsort(-scores, kind="stable")
    return [np.sort(order[:count]) for count in range(len(order) + 1)]


def read_layers(model: nn.Module, graph: ChannelGraph) -> list[str]:
    """Names of the layers whose inputs are measured, in the model's order."""
    names = {cut.layer for group in graph.groups for cut in readers(model, group)}
    return [name for name, _ in model.named_modules() if name in names]


def readers(model: nn.Module, group: ChannelGroup) -> list[Cut]:
    """Layers that read a group's channels and can be reconstructed."""
    return [cut for cut in group.cuts if cut.side == "in" and is_dense(model.get_submodule(cut.layer))]


def selection_gram(model: nn.Module, group: ChannelGroup, moments: dict[str, Moments]) -> np.ndarray:
    """Gram matrix ``(U, U)`` of the units' contributions to the layers that read them, each layer with the same weight.

    If no reader is a matrix product (grouped and transposed convolutions, recurrent layers), a diagonal of the squared
    magnitudes of the weights that produce each unit; of the magnitudes, if a recurrent layer produces it.
    """
    total = np.zeros((group.units, group.units))
    for cut in readers(model, group):
        if cut.layer in moments:
            layer = model.get_submodule(cut.layer)
            gram = lasso.unit_gram(moments[cut.layer], weight_rows(layer).cpu(), cut.index, cut.size)
            total += gram / max(gram.sum(), 1e-30)
    if total.any():
        return total
    made = [cut for cut in group.cuts if cut.side == "out"]
    # A norm passes the units on, and does not make them.
    filters = [cut for cut in made if cut.kind in WITH_FILTERS]
    maker = next(iter(filters or [cut for cut in made if cut.inside and cut.inside.axes]))
    layer = model.get_submodule(maker.layer)
    energy = maker.inside.magnitudes(layer, maker.size) if maker.inside else filter_magnitudes(layer, 2)
    return np.diag(energy[maker.index].sum(1))


def group_errors(
    model: nn.Module, calibration: Calibration, group: ChannelGroup, counts: Sequence[int]
) -> dict[int, float]:
    """Relative errors, 0 to 1, if the group keeps so many units and all other groups keep everything, by count."""
    counts = [count for count in counts if count < group.units]
    selections = [calibration.kept[group.name][count] for count in counts]
    cuts = [cut for cut in readers(model, group) if cut.layer in calibration.moments]
    explained = np.ones(len(counts))
    for cut in cuts:
        layer, moments = model.get_submodule(cut.layer), calibration.moments[cut.layer]
        channels = [kept_positions(calibration.graph, {group.name: kept})[cut.layer, "in"] for kept in selections]
        rows = [rows_of_channels(layer, own) for own in channels]
        explained *= 1 - least_squares.lost_shares(moments, weight_rows(layer).cpu(), rows)
    if not cuts:
        energy = np.diag(selection_gram(model, group, {}))
        explained = np.array([energy[kept].sum() for kept in selections]) / max(energy.sum(), 1e-30)
    return dict(zip(counts, (1 - explained).tolist(), strict=True)) | {group.units: 0.0}


def _rows_of(model: nn.Module, layer: str) -> torch.Tensor:
    return weight_rows(model.get_submodule(layer))


def _readers_of(group: ChannelGroup) -> set[str]:
    return {cut.layer for cut in group.cuts if cut.side == "in"}
