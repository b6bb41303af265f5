"""Channel pruning by LASSO selection and least-squares reconstruction (He, Zhang and Sun 2017), or by a ranking.

Selection and reconstruction are two choices. LASSO and least squares keep what they can without a training; before a
long one the units of the largest l1 norms, with their own weights, are the better start (docs/results.md, *Which
channels*).

One pass over the calibration images gives the covariance of each layer's inputs. It determines, for every channel group
and count, the channels to keep (the whole LASSO path at once), the error of the layers that read them, and for a plan
the weights of least error: a candidate of the search needs no further pass over the data. The chosen plan is
reconstructed layer by layer, in order (``finish``).
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from learners._channel_calibration import Calibration, after_removal, calibrate, group_errors, read_layers
from learners._channels import ChannelAlgorithm
from pfray.learner.base import Algorithm, Compressed
from pfray.measure.calibration import affordable_inputs, fewer_inputs_note
from pfray.nn.dense import can_shift, shift_output
from pfray.nn.fx import Untraceable
from pfray.nn.im2col import rows_of_channels, weight_rows
from pfray.nn.modes import place
from pfray.pruning.channels import keep_ratios
from pfray.pruning.channels.graph import ChannelGraph, ChannelGroup
from pfray.pruning.channels.keep_ratios import ChannelSettings, graph_of
from pfray.pruning.channels.prune import Kept, kept_positions, prune
from pfray.pruning.reconstruction import least_squares
from pfray.pruning.reconstruction.covariance import moments_macs
from pfray.pruning.reconstruction.sequential import reconstruct_in_order
from pfray.space import Plan
from pfray.training.batch_norm import reestimate_batch_norm

# Optimizer steps of training from which on the units of the largest l1 norms are the better start.
LONG = 600
NAMES = {"lasso": "LASSO", "l1": "l1 norms"}


@dataclass(frozen=True)
class Settings(ChannelSettings):
    """criterion: which units stay, by ``lasso``, or by the scores ``l1`` or ``taylor`` (``scores.py``). ``auto``: by
    LASSO, or by l1 norms where ``LONG`` optimizer steps of training follow.

    reconstruct: fit the layers that read the units by least squares.

    images: training inputs for calibration. positions: output positions sampled from each.

    null images are 1,000, or as many as cost 1.2e12 multiply-adds (the forward pass, and the products of the rows that
    the layers read), which is half a minute of one core; at least 50.

    Where the activations of so many inputs need more than 4 GB, the chosen plan is reconstructed in order from fewer
    inputs, with more positions of each.
    """

    criterion: Literal["auto", "lasso", "l1", "taylor"] = "auto"
    reconstruct: bool = True
    images: Annotated[int, Field(ge=1)] | None = None
    positions: Annotated[int, Field(ge=1)] = 48


class ChannelPruned(ChannelAlgorithm):
    settings: Settings
    settings_type = Settings

    @classmethod
    def for_training(cls, settings: Settings, steps: int, per_epoch: int) -> tuple[Settings, str]:
        """Decides ``criterion``. The epochs of group fine-tuning count once."""
        if settings.criterion != "auto":
            return settings, ""
        steps += settings.group_epochs * per_epoch if settings.group_size else 0
        criterion: Any = "l1" if steps >= LONG else "lasso"
        trained = f"{steps:,} steps of training follow, {'' if steps < LONG else 'not '}fewer than {LONG:,}"
        why = f"channel_pruned chooses channels by {NAMES[criterion]} (criterion), in trials too: {trained}"
        return replace(settings, criterion=criterion), why

    # The same learner bound to the model before layers were removed from it; None if none were.
    before_removal: ChannelPruned | None = None

    @cached_property
    def calibration(self) -> Calibration:
        if self.before_removal is None:
            return self.calibrate(self.model)
        whole, settings = self.before_removal, self.settings
        return after_removal(
            whole.calibration, self.model, self.task, whole.images, settings.positions, settings.criterion
        )

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

    def calibrate(self, model: nn.Module) -> Calibration:
        return calibrate(model, self.task, self.images, self.settings.positions, self.settings.criterion)

    def behind(self, earlier: Algorithm, plan: Plan, model: nn.Module) -> ChannelPruned:
        later = super().behind(earlier, plan, model)
        assert isinstance(later, ChannelPruned)
        if earlier.removable():
            later.before_removal = self
        return later

    def error_curves(self) -> dict[str, np.ndarray]:
        """Reconstruction error of the layers that read a group: 1 - R^2 of their outputs.

        R^2 of several readers are multiplied, so that the allocator adds up their errors. They are errors after least
        squares also where none follow: what no fit can restore is what a training has to.
        """
        errors: dict[str, dict[int, float]] = {}

        def error(group: ChannelGroup, count: int) -> float:
            if group.name not in errors:
                counts = keep_ratios.allowed_counts(group, self.settings.round_to, self.settings.min_keep)
                errors[group.name] = group_errors(self.model, self.calibration, group, counts)
            return errors[group.name][count]

        return keep_ratios.error_curves(self.calibration.graph, self.settings, error)

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """Prunes all groups at once. With ``reconstruct`` each layer is fitted to its inputs in the uncompressed model.
        """
        counts, selections = self.structure(plan), self.calibration.kept
        kept = {group: selections[group][count] for group, count in counts.items()}
        if not self.settings.reconstruct:
            return Compressed(removed(self.model, self.calibration.graph, kept))
        return Compressed(reconstructed(self.model, self.calibration, kept))

    def finish(self, plan: Plan, start: nn.Module | None = None) -> Compressed:
        """Keeps the channels of ``compress``, and reconstructs the layers in order (``sequential.py``).

        Without ``reconstruct`` the weights stay, and batch norms are re-estimated.
        A layer's inputs are the outputs of the pruned layers before it, its targets the outputs of the unpruned model.
        If torch.fx cannot trace the model, the order is unknown: all layers are then reconstructed as in ``compress``.
        """
        model = self.model if start is None else start
        calibration = self.calibration if start is None else self.calibrate(start)
        structure = self.structure(plan)
        counts = keep_ratios.groups_left(model, structure, self.task)
        kept = {group.name: calibration.kept[group.name][count] for group, count in counts.items()}
        if not self.settings.reconstruct:
            pruned = removed(model, calibration.graph, kept)
            reestimate_batch_norm(pruned, self.task, self.images, "float32")
            return Compressed(pruned, structure=structure)
        try:
            pruned = reconstruct_in_order(
                model, calibration.graph, kept, self.task, self.images, self.settings.positions
            )
        except Untraceable as error:
            logging.getLogger("pfray").warning(
                "the pruned layers are reconstructed all at once and not in order, since torch.fx cannot trace %s (%s)",
                type(model).__name__,
                error,
            )
            pruned = reconstructed(model, calibration, kept).eval()
        return Compressed(pruned, structure=structure)


def removed(model: nn.Module, graph: ChannelGraph, kept: Kept) -> nn.Module:
    """A pruned copy whose remaining weights are the model's own."""
    pruned = copy.deepcopy(model)
    prune(pruned, graph, kept)
    return place(pruned, next(model.parameters()).device)


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
