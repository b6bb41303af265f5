"""Channel pruning by LASSO selection and least-squares reconstruction (He, Zhang and Sun 2017).

One pass over the calibration images gives the covariance of each layer's inputs. It determines, for every channel group
and count, the channels to keep (the whole LASSO path at once), the error of the layers that read them, and for a plan
the weights of least error: a candidate of the search needs no further pass over the data. The chosen plan is
reconstructed layer by layer, in order (``finish``).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from learners._channels import ChannelAlgorithm
from pfray.learner.base import Compressed
from pfray.measure.calibration import affordable_inputs, fewer_inputs_note
from pfray.nn.dense import can_shift, is_dense, norms_behind, shift_output
from pfray.nn.fx import Untraceable
from pfray.nn.im2col import rows_of_channels, weight_rows
from pfray.nn.modes import place
from pfray.pruning.channels import keep_ratios
from pfray.pruning.channels.dependency import Cut
from pfray.pruning.channels.graph import ChannelGraph, ChannelGroup
from pfray.pruning.channels.importance import WITH_FILTERS, filter_magnitudes
from pfray.pruning.channels.keep_ratios import ChannelSettings, graph_of
from pfray.pruning.channels.prune import Kept, kept_positions, prune
from pfray.pruning.reconstruction import lasso, least_squares
from pfray.pruning.reconstruction.covariance import Moments, cached_moments, moments_key, moments_macs
from pfray.pruning.reconstruction.sequential import reconstruct_in_order
from pfray.space import Plan
from pfray.task import Task, example_input
from pfray.utils.cache import content_key


@dataclass(frozen=True)
class Settings(ChannelSettings):
    """images: training inputs for calibration. positions: output positions sampled from each.

    null images are 1,000, or as many as cost 1.2e12 multiply-adds (the forward pass, and the products of the rows that
    the layers read), which is half a minute of one core; at least 50.

    Where the activations of so many inputs need more than 4 GB, the chosen plan is reconstructed in order from fewer
    inputs, with more positions of each.
    """

    images: Annotated[int, Field(ge=1)] | None = None
    positions: Annotated[int, Field(ge=1)] = 48


class ChannelPruned(ChannelAlgorithm):
    settings: Settings
    settings_type = Settings

    @cached_property
    def calibration(self) -> Calibration:
        return calibrate(self.model, self.task, self.images, self.settings.positions)

    @cached_property
    def images(self) -> int:
        """Training inputs for calibration."""
        return self.settings.images or affordable_inputs(self.macs)

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of the calibration for each input."""
        layers = read_layers(self.model, graph_of(self.model, self.task))
        return moments_macs(self.model, self.task, layers, self.settings.positions)

    def notes(self) -> list[str]:
        if self.settings.images is not None:
            return []
        return fewer_inputs_note("channel_pruned", self.images, len(self.task.train), self.macs)

    def error_curves(self) -> dict[str, np.ndarray]:
        """Reconstruction error of the layers that read a group: 1 - R^2 of their outputs.

        R^2 of several readers are multiplied, so that the allocator adds up their errors.
        """
        errors: dict[str, dict[int, float]] = {}

        def error(group: ChannelGroup, count: int) -> float:
            if group.name not in errors:
                counts = keep_ratios.allowed_counts(group, self.settings.round_to, self.settings.min_keep)
                errors[group.name] = group_errors(self.model, self.calibration, group, counts)
            return errors[group.name][count]

        return keep_ratios.error_curves(self.calibration.graph, self.settings, error)

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """Prunes all groups at once, each layer reconstructed from its inputs in the uncompressed model."""
        counts, kept = self.structure(plan), self.calibration.kept
        return Compressed(reconstructed(self.model, self.calibration, {g: kept[g][n] for g, n in counts.items()}))

    def finish(self, plan: Plan, start: nn.Module | None = None) -> Compressed:
        """Keeps the channels of ``compress``, and reconstructs the layers in order (``sequential.py``).

        A layer's inputs are the outputs of the pruned layers before it, its targets the outputs of the unpruned model.
        If torch.fx cannot trace the model, the order is unknown: all layers are then reconstructed as in ``compress``.
        """
        model = self.model if start is None else start
        images, positions = self.images, self.settings.positions
        calibration = self.calibration if start is None else calibrate(start, self.task, images, positions)
        structure = self.structure(plan)
        counts = keep_ratios.groups_left(model, structure, self.task)
        kept = {group.name: calibration.kept[group.name][count] for group, count in counts.items()}
        try:
            pruned = reconstruct_in_order(model, calibration.graph, kept, self.task, images, positions)
        except Untraceable as error:
            logging.getLogger("pfray").warning(
                "the pruned layers are reconstructed all at once and not in order, since torch.fx cannot trace %s (%s)",
                type(model).__name__,
                error,
            )
            pruned = reconstructed(model, calibration, kept).eval()
        return Compressed(pruned, structure=structure)


@dataclass(frozen=True)
class Calibration:
    """Quantities independent of the plan.

    moments: moments of the inputs of each layer that reads channels of a group. kept: kept units, by group and count.
    norms: the batch norm after a layer, by the layer's name.
    """

    graph: ChannelGraph
    moments: dict[str, Moments]
    kept: dict[str, list[np.ndarray]]
    norms: dict[str, str]


def calibrate(model: nn.Module, task: Task, images: int, positions: int) -> Calibration:
    """Runs one pass over the calibration images, and computes the LASSO path of every group; once on a machine."""
    graph = graph_of(model, task)
    norms = norms_behind(model, example_input(task, next(model.parameters()).device))
    layers = read_layers(model, graph)
    key = moments_key(model, task, layers, images, positions)
    moments = cached_moments(model, task, layers, images, positions, key)
    # A bias or a batch norm can take over the mean contribution of removed channels; without one the weights have to
    # compensate for it, and it counts as error.
    moments = {n: m if can_shift(model, n, norms) else m.uncentered() for n, m in moments.items()}
    parts = [(g.name, g.units, [(cut.layer, cut.side, cut.size, cut.index.tobytes()) for cut in g.cuts])
             for g in graph.groups]  # fmt: skip
    kept = lasso.cached_selections(
        content_key(key, parts), lambda: {g.name: selection_gram(model, g, moments) for g in graph.groups}
    )
    return Calibration(graph, moments, kept, norms)


def read_layers(model: nn.Module, graph: ChannelGraph) -> list[str]:
    """Names of the layers whose inputs are measured, in the model's order."""
    names = {cut.layer for group in graph.groups for cut in readers(model, group)}
    return [name for name, _ in model.named_modules() if name in names]


def reconstructed(model: nn.Module, calibration: Calibration, kept: Kept) -> nn.Module:
    """A pruned copy, each layer reconstructed from its inputs in the uncompressed model. kept: kept units, by group."""
    pruned = copy.deepcopy(model)
    stays = kept_positions(calibration.graph, kept)
    prune(pruned, calibration.graph, kept)
    for name, moments in calibration.moments.items():
        if (name, "in") not in stays:
            continue
        layer: Any = pruned.get_submodule(name)
        weight = weight_rows(model.get_submodule(name)).cpu()[:, stays.get((name, "out"), slice(None))]
        rows = rows_of_channels(layer, stays[name, "in"])
        new = least_squares.reconstruct(moments, weight, rows)
        with torch.no_grad():
            layer.weight.copy_(new.T.reshape(layer.weight.shape))
            if can_shift(pruned, name, calibration.norms):
                mean = moments.mean.double()
                shift_output(pruned, name, calibration.norms, mean @ weight - mean[torch.from_numpy(rows)] @ new)
    return place(pruned, next(model.parameters()).device)


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
