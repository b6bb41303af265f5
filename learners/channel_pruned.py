"""Channel pruning by LASSO selection and least-squares reconstruction (He, Zhang and Sun 2017).

One pass over the calibration images gives the covariance of what each layer reads. From those follow, for every group
of channels and every count, which channels to keep (the whole LASSO path at once), what the layers that read them lose,
and, for a plan, the weights that lose least: a candidate of the search needs no further look at the data. The plan that
is chosen in the end is done in order (``finish``).
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from pfray.learner.base import Algorithm, Compressed, Stage
from pfray.nn.dense import can_shift, is_dense, norms_behind, shift_output
from pfray.nn.fx import Untraceable
from pfray.nn.modes import place
from pfray.pruning.channels import keep_ratios
from pfray.pruning.channels.dependency import Cut
from pfray.pruning.channels.graph import ChannelGraph, ChannelGroup
from pfray.pruning.channels.keep_ratios import ChannelSettings, graph_of
from pfray.pruning.channels.prune import Kept, kept_positions, prune
from pfray.pruning.reconstruction import lasso, least_squares
from pfray.pruning.reconstruction.covariance import Moments, cached_moments
from pfray.pruning.reconstruction.im2col import rows_of_channels, weight_rows
from pfray.pruning.reconstruction.sequential import reconstruct_in_order
from pfray.space import CompressionSpace, Plan
from pfray.task import Task, example_input


@dataclass(frozen=True)
class Settings(ChannelSettings):
    """images: training inputs that calibrate. positions: how many output positions of each are looked at."""

    images: Annotated[int, Field(ge=1)] = 1000
    positions: Annotated[int, Field(ge=1)] = 48


class ChannelPruned(Algorithm):
    settings: Settings
    settings_type = Settings
    permanent = True
    has_finish = True
    has_error_curves = True

    def space(self) -> CompressionSpace:
        """One knob, the keep ratio, for every group of channels; costs ``macs`` and ``params``."""
        return keep_ratios.channel_space(graph_of(self.model, self.task), self.settings)

    @cached_property
    def calibration(self) -> Calibration:
        return calibrate(self.model, self.task, self.settings)

    def error_curves(self) -> dict[str, np.ndarray]:
        """What the layers that read a group lose, each reconstructed: 1 - R^2 of its outputs.

        Of several readers R^2 is multiplied, which for the allocator adds their errors up.
        """
        error = partial(group_error, self.model, self.calibration)
        return keep_ratios.error_curves(self.calibration.graph, self.settings, error)

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """All groups at once, each layer reconstructed from what it read in the uncompressed model."""
        counts, kept = self.structure(plan), self.calibration.kept
        return Compressed(reconstructed(self.model, self.calibration, {g: kept[g][n] for g, n in counts.items()}))

    def finish(self, plan: Plan, start: nn.Module | None = None) -> Compressed:
        """The channels of ``compress``; then every layer in order, with the inputs that the pruned layers before it
        really give, reconstructed against what the unpruned model does (``sequential.py``). Where the order cannot be
        found, as in ``compress``."""
        model = self.model if start is None else start
        calibration = self.calibration if start is None else calibrate(start, self.task, self.settings)
        structure = self.structure(plan)
        counts = keep_ratios.groups_left(model, structure, self.task)
        kept = {group.name: calibration.kept[group.name][count] for group, count in counts.items()}
        images, positions = self.settings.images, self.settings.positions
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

    def structure(self, plan: Plan) -> dict[str, int]:
        """The units that each group keeps."""
        return keep_ratios.kept_counts(graph_of(self.model, self.task), plan)

    def rebuild(self, structure: dict[str, int]) -> nn.Module:
        return keep_ratios.with_counts(self.model, structure, self.task)

    def stages(self, plan: Plan) -> list[Stage]:
        """Group fine-tuning."""
        plans = keep_ratios.group_plans(plan, self.settings.group_size)
        return [Stage(each, self.settings.group_epochs) for each in plans]


@dataclass(frozen=True)
class Calibration:
    """What does not depend on the plan.

    moments: of the inputs of each layer that reads channels of a group. kept: by group and count, the units that stay.
    norms: the batch norm behind a layer.
    """

    graph: ChannelGraph
    moments: dict[str, Moments]
    kept: dict[str, list[np.ndarray]]
    norms: dict[str, str]


def calibrate(model: nn.Module, task: Task, settings: Settings) -> Calibration:
    """One pass over the calibration images, and the LASSO path of every group."""
    graph = graph_of(model, task)
    norms = norms_behind(model, example_input(task, next(model.parameters()).device))
    names = {cut.layer for group in graph.groups for cut in readers(model, group)}
    ordered = [name for name, _ in model.named_modules() if name in names]
    moments = cached_moments(model, task, ordered, settings.images, settings.positions)
    # A constant that the removed channels had contributed can be put into a bias or a batch norm; otherwise the weights
    # have to make up for it, and it counts.
    moments = {n: m if can_shift(model, n, norms) else m.uncentered() for n, m in moments.items()}
    kept = {group.name: lasso.lasso_selections(selection_gram(model, group, moments)) for group in graph.groups}
    return Calibration(graph, moments, kept, norms)


def reconstructed(model: nn.Module, calibration: Calibration, kept: Kept) -> nn.Module:
    """A pruned copy, each layer reconstructed from what it read in the uncompressed model. kept: units, by group."""
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
    """The layers that a group's channels are read by and that can be reconstructed."""
    return [cut for cut in group.cuts if cut.side == "in" and is_dense(model.get_submodule(cut.layer))]


def selection_gram(model: nn.Module, group: ChannelGroup, moments: dict[str, Moments]) -> np.ndarray:
    """``(U, U)``: the units' contributions to the layers that read them, each layer's output counting the same.

    Where no reader can be seen as a matrix product (grouped and transposed convolutions), the squared magnitude of the
    weights that make a unit.
    """
    total = np.zeros((group.units, group.units))
    for cut in readers(model, group):
        if cut.layer in moments:
            layer = model.get_submodule(cut.layer)
            gram = lasso.unit_gram(moments[cut.layer], weight_rows(layer).cpu(), cut.index, cut.size)
            total += gram / max(gram.sum(), 1e-30)
    if total.any():
        return total
    maker = group.cuts[0]
    weight = model.get_submodule(maker.layer).get_parameter("weight").detach().cpu().double()
    axis = 1 if getattr(model.get_submodule(maker.layer), "transposed", False) else 0
    energy = weight.movedim(axis, 0).flatten(1).square().sum(1).numpy()
    return np.diag(energy[maker.index % len(energy)].sum(1))


def group_error(model: nn.Module, calibration: Calibration, group: ChannelGroup, count: int) -> float:
    """What is lost, from 0 to 1, where the group keeps ``count`` units and all others stay whole."""
    if count == group.units:
        return 0.0
    kept, explained = calibration.kept[group.name][count], 1.0
    stays = kept_positions(calibration.graph, {group.name: kept})
    cuts = [cut for cut in readers(model, group) if cut.layer in calibration.moments]
    for cut in cuts:
        layer, moments = model.get_submodule(cut.layer), calibration.moments[cut.layer]
        weight, rows = weight_rows(layer).cpu(), rows_of_channels(layer, stays[cut.layer, "in"])
        new = least_squares.reconstruct(moments, weight, rows)
        explained *= 1 - least_squares.lost_share(moments, weight, rows, new)
    if not cuts:
        energy = np.diag(selection_gram(model, group, {}))
        explained = energy[kept].sum() / max(energy.sum(), 1e-30)
    return 1 - explained
