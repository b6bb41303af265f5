"""Gradual magnitude pruning of weights (Zhu & Gupta 2017, "To prune, or not to prune").

Notation: layer l has n_l weights, of which the plan sets the share s_l to zero.

PocketFlow prunes a candidate of its search in one shot, then regresses each layer on its former outputs by some steps
of Adam (``ws_nb_iters_rg``, ``ws_lrn_rate_rg``), on images and layer by layer. ``regression_steps`` is the counterpart
on the covariance of each layer's inputs in the uncompressed model
(``pfray/pruning/reconstruction/masked_least_squares.py``). It needs no further pass over the data, but a layer does not
compensate for the errors of earlier ones.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pfray.errors import UnsupportedModel
from pfray.learner.base import Algorithm, Compressed
from pfray.measure.cost import count_params, layer_macs
from pfray.nn.dense import can_shift, is_dense, norms_behind, shift_output
from pfray.nn.im2col import weight_rows
from pfray.nn.layers import is_depthwise, weight_layers, without_skipped
from pfray.pruning.reconstruction.covariance import Moments, cached_moments
from pfray.pruning.reconstruction.masked_least_squares import fit_kept
from pfray.space import CompressionSpace, Knob, Plan
from pfray.task import example_input

# Number of points of an error curve.
GRID = 65
# Output positions sampled from each input for the regression of a layer.
POSITIONS = 48


@dataclass(frozen=True)
class Settings:
    """Schedule and bounds of the sparsity.

    begin, end: shares of the training at which the sparsity starts to grow and is reached (t_b and t_e of the paper).
    exponent: a of the schedule; 3 in the paper. interval: optimizer steps between updates of the masks.
    max_sparsity: maximum sparsity of a layer. skip: layers that stay dense, by name.
    depthwise: if True, depthwise convolutions are pruned too; they are small and sensitive.
    regression_steps: steps of regressing a layer's remaining weights on its former outputs if no training follows, as
        in trials without fine-tuning; 0 for none. images: training inputs for the regression.
    """

    begin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    end: Annotated[float, Field(gt=0, le=1)] = 0.6
    exponent: Annotated[float, Field(gt=0)] = 3.0
    interval: Annotated[int, Field(ge=1)] = 8
    max_sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.98
    skip: tuple[str, ...] = ()
    depthwise: bool = False
    regression_steps: Annotated[int, Field(ge=0)] = 0
    images: Annotated[int, Field(ge=1)] = 1000

    def __post_init__(self) -> None:
        if self.begin >= self.end:
            raise ValueError(f"begin is {self.begin} and end is {self.end}; begin must be below end")


class WeightSparse(Algorithm):
    settings: Settings
    settings_type = Settings
    has_error_curves = True
    has_rungs = True

    def space(self) -> CompressionSpace:
        """One knob, the sparsity, per convolution and linear layer that is not skipped.

        Costs: ``sparsity``, over the weights of all such layers including the skipped ones; ``params``, the nonzero
        ones. Raises UnsupportedModel if no layer remains.
        """
        settings, layers = self.settings, weight_layers(self.model)
        chosen = {name: layers[name] for name in without_skipped(layers, settings.skip)}
        if not settings.depthwise:
            chosen = {name: m for name, m in chosen.items() if not is_depthwise(m)}
        if not chosen:
            raise UnsupportedModel(
                f"{type(self.model).__name__} has no convolution or linear layer to sparsify. Remedy: another learner, "
                "or fewer layers in learner.skip"
            )
        macs = layer_macs(self.model, example_input(self.task))
        knobs = tuple(
            Knob(
                name,
                compressed=settings.max_sparsity,
                full=0.0,
                scale="log_density",
                facts={"params": m.weight.numel(), "macs": macs[name]},
                kind="sparsity",
            )
            for name, m in chosen.items()
        )
        costs = partial(
            _costs,
            sizes=np.array([m.weight.numel() for m in chosen.values()]),
            all_weights=sum(m.weight.numel() for m in layers.values()),
            params=count_params(self.model)[0],
        )
        return CompressionSpace(knobs, costs)

    @cached_property
    def magnitude_order(self) -> dict[str, Tensor]:
        """Indices ``(n_l,)`` of each layer's weights by ascending magnitude; a prefix is the mask of any sparsity."""
        layers = weight_layers(self.model)
        return {name: m.weight.detach().abs().flatten().argsort(stable=True) for name, m in layers.items()}

    @cached_property
    def norms(self) -> dict[str, str]:
        """Name of the batch norm after each layer."""
        return norms_behind(self.model, example_input(self.task, self.device))

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Moments of the inputs of each dense layer; empty without ``regression_steps``."""
        if not self.settings.regression_steps:
            return {}
        dense = [name for name, module in weight_layers(self.model).items() if is_dense(module)]
        moments = cached_moments(self.model, self.task, dense, self.settings.images, POSITIONS)
        # A bias or a batch norm can take over the lost mean; without one it counts as error.
        return {n: m if can_shift(self.model, n, self.norms) else m.uncentered() for n, m in moments.items()}

    def error_curves(self) -> dict[str, np.ndarray]:
        """Shares of a layer's squared magnitude in its smallest weights, ``(GRID,)`` per layer.

        e_l(s) = sum of w^2 over the ``zero_count(s)`` smallest magnitudes / sum of w^2 over all.
        """
        space = self.space()
        plans = [space.decode(np.full(len(space), position)) for position in np.linspace(0.0, 1.0, GRID)]
        layers, curves = weight_layers(self.model), {}
        for name in space.names:
            squares = layers[name].weight.detach().flatten().double().square().sort().values
            lost = np.concatenate([[0.0], squares.cumsum(0).numpy()]) / max(squares.sum().item(), 1e-30)
            curves[name] = lost[[zero_count(plan[name], len(squares)) for plan in plans]]
        return curves

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """Prunes the smallest magnitudes: immediately if ``steps`` is 0, else by the schedule of the hook."""
        model = copy.deepcopy(self.model)
        layers = weight_layers(model)
        weights = {name: layers[name].weight for name in plan}
        if steps == 0:
            with torch.no_grad():
                for name, weight in weights.items():
                    pruned_mask = _mask_at(self.magnitude_order[name][: zero_count(plan[name], weight.numel())], weight)
                    if name in self.moments:
                        self._regress(model, name, pruned_mask)
                    weight.masked_fill_(pruned_mask, 0.0)
        # Of a model that was trained at a milder plan the zeros stay.
        zeros = {name: (layers[name].weight == 0).double().mean().item() for name in plan}
        ends = {name: (min(zeros[name], plan[name]), plan[name]) for name in plan}
        hook = partial(_update_masks, weights=weights, pruned={}, ends=ends, settings=self.settings, steps=steps)
        return Compressed(model, hook)

    def _regress(self, model: nn.Module, name: str, pruned_mask: Tensor) -> None:
        """Regress the remaining weights of a layer on its outputs with all weights."""
        layer, moments = model.get_submodule(name), self.moments[name]
        weight = layer.get_parameter("weight")
        whole = weight_rows(layer).to(weight)
        kept = ~pruned_mask.flatten(1).T
        fitted = fit_kept(moments.covariance.to(weight), whole, kept, self.settings.regression_steps)
        weight.copy_(fitted.T.reshape(weight.shape))
        if can_shift(model, name, self.norms):
            shift_output(model, name, self.norms, moments.mean.to(weight) @ (whole - fitted))


def gradual_sparsity(final: float, progress: float, settings: Settings, initial: float = 0.0) -> float:
    """s_t = s_i + (s_f - s_i) (1 - (1 - (t - t_b)/(t_e - t_b))^a): Zhu & Gupta 2017, equation 1.

    progress: t as a share of the training, 0 to 1. initial: s_i, at most s_f.
    """
    ramp = min(1.0, max(0.0, (progress - settings.begin) / (settings.end - settings.begin)))
    return initial + (final - initial) * (1 - (1 - ramp) ** settings.exponent)


def zero_count(sparsity: float, size: int) -> int:
    """Number of zeros among ``size`` weights at a sparsity."""
    return int(np.rint(sparsity * size))


def smallest_mask(weight: Tensor, sparsity: float) -> Tensor:
    """Mask of the weight's shape: True at the ``zero_count(sparsity)`` smallest magnitudes, ties by position."""
    return _mask_at(weight.abs().flatten().argsort(stable=True)[: zero_count(sparsity, weight.numel())], weight)


def _mask_at(indices: Tensor, weight: Tensor) -> Tensor:
    """Boolean mask of the weight's shape, True at the flat ``indices`` of any memory format."""
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[indices] = True
    return mask.view(weight.shape)


@torch.no_grad()
def _update_masks(
    step: int,
    *,
    weights: dict[str, Tensor],
    pruned: dict[str, Tensor],
    ends: dict[str, tuple[float, float]],
    settings: Settings,
    steps: int,
) -> None:
    """Reset pruned weights to 0.0 and prune more when due. Called before the training and after each of its steps.

    ends: first and last sparsity of each layer.
    """
    last = math.ceil(settings.end * steps)
    due = step == last or (step < last and step % settings.interval == 0)
    for name, weight in weights.items():
        # On the first call, before any step, zeros were pruned by an earlier part of a resumed training.
        # Filled, not multiplied by a mask: -0.0 would cost bytes in the packed file.
        weight.masked_fill_(pruned.setdefault(name, weight == 0), 0.0)
        if due:
            first, final = ends[name]
            sparsity = gradual_sparsity(final, step / max(1, steps), settings, first)
            pruned[name] = smallest_mask(weight, sparsity)
            weight.masked_fill_(pruned[name], 0.0)


def _costs(values: np.ndarray, sizes: np.ndarray, all_weights: int, params: int) -> dict[str, float]:
    pruned = float(np.rint(values * sizes).sum())
    return {"sparsity": pruned / all_weights, "params": params - pruned}
