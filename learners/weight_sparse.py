"""Weight sparsification by magnitude, approached gradually in training (Zhu & Gupta 2017, "To prune, or not to prune").

Notation: layer l has n_l weights, of which the plan wants the share s_l to be zero.

A candidate of PocketFlow's search is pruned at once, and each layer is then fitted to what it gave before by some steps
of Adam (``ws_nb_iters_rg``, ``ws_lrn_rate_rg``), on images and one layer after the other. ``regression_steps`` does the
like from what each layer read in the uncompressed model (``pfray/pruning/reconstruction/masked_least_squares.py``),
which needs no further look at the data; a layer does not make up for the ones before it.
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
from pfray.nn.layers import is_depthwise, weight_layers, without_skipped
from pfray.pruning.reconstruction.covariance import Moments, cached_moments
from pfray.pruning.reconstruction.im2col import weight_rows
from pfray.pruning.reconstruction.masked_least_squares import fit_kept
from pfray.space import CompressionSpace, Knob, Plan
from pfray.task import example_input

# Points of an error curve.
GRID = 65
# Output positions of each input at which a layer is fitted.
POSITIONS = 48


@dataclass(frozen=True)
class Settings:
    """When the sparsity grows and how far it may go.

    begin, end: the shares of the training at which it starts to grow and is reached (t_b and t_e of the paper).
    exponent: a of the schedule; 3 in the paper. interval: optimizer steps between two updates of the masks.
    max_sparsity: the most that one layer may lose. skip: layers left dense, by name.
    depthwise: whether depthwise convolutions are pruned too; they hold few weights and lose much.
    regression_steps: steps of fitting a layer's remaining weights to what it gave before, where no training follows,
        as in trials without fine-tuning; 0 leaves them as they are. images: training inputs that it is fitted on.
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

    def space(self) -> CompressionSpace:
        """One knob, the sparsity, for the weight of every convolution and linear layer that is not skipped.

        Costs: ``sparsity`` over the weights of all such layers, the skipped ones counted in; ``params``, not zero.
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
    def order(self) -> dict[str, Tensor]:
        """Indices ``(n_l,)`` of each layer's weights by rising magnitude; a mask of any sparsity is a head of them."""
        layers = weight_layers(self.model)
        return {name: m.weight.detach().abs().flatten().argsort(stable=True) for name, m in layers.items()}

    @cached_property
    def norms(self) -> dict[str, str]:
        """The batch norm behind each layer that is fitted."""
        return norms_behind(self.model, example_input(self.task, self.device))

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Moments of what each fitted layer reads; none without ``regression_steps``."""
        if not self.settings.regression_steps:
            return {}
        dense = [name for name, module in weight_layers(self.model).items() if is_dense(module)]
        moments = cached_moments(self.model, self.task, dense, self.settings.images, POSITIONS)
        # A constant that is lost can be put into a bias or a batch norm; otherwise it counts.
        return {n: m if can_shift(self.model, n, self.norms) else m.uncentered() for n, m in moments.items()}

    def error_curves(self) -> dict[str, np.ndarray]:
        """The share of a layer's squared magnitude that its smallest weights hold, ``GRID`` positions a layer.

        e_l(s) = sum of w^2 over the ``zeros(s)`` smallest magnitudes / sum of w^2 over all.
        """
        space = self.space()
        plans = [space.decode(np.full(len(space), position)) for position in np.linspace(0.0, 1.0, GRID)]
        layers, curves = weight_layers(self.model), {}
        for name in space.names:
            squares = layers[name].weight.detach().flatten().double().square().sort().values
            lost = np.concatenate([[0.0], squares.cumsum(0).numpy()]) / max(squares.sum().item(), 1e-30)
            curves[name] = lost[[zeros(plan[name], len(squares)) for plan in plans]]
        return curves

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """Without training the smallest magnitudes go at once; with it the hook removes them by the schedule."""
        model = copy.deepcopy(self.model)
        layers = weight_layers(model)
        weights = {name: layers[name].weight for name in plan}
        if steps == 0:
            with torch.no_grad():
                for name, weight in weights.items():
                    gone = _at(self.order[name][: zeros(plan[name], weight.numel())], weight)
                    if name in self.moments:
                        self._refit(model, name, gone)
                    weight.masked_fill_(gone, 0.0)
        hook = partial(_advance, weights=weights, pruned={}, plan=plan, settings=self.settings, steps=steps)
        return Compressed(model, hook)

    def _refit(self, model: nn.Module, name: str, gone: Tensor) -> None:
        """Fit the weights of a layer that are not ``gone`` to what it gave with all of them."""
        layer, moments = model.get_submodule(name), self.moments[name]
        weight = layer.get_parameter("weight")
        whole = weight_rows(layer).to(weight)
        fitted = fit_kept(moments.covariance.to(weight), whole, ~gone.flatten(1).T, self.settings.regression_steps)
        weight.copy_(fitted.T.reshape(weight.shape))
        if can_shift(model, name, self.norms):
            shift_output(model, name, self.norms, moments.mean.to(weight) @ (whole - fitted))


def gradual_sparsity(final: float, progress: float, settings: Settings) -> float:
    """s_t = s_f (1 - (1 - (t - t_b)/(t_e - t_b))^a): Zhu & Gupta 2017, equation 1, from an initial sparsity of 0.

    progress: t as a share of the training.
    """
    ramp = min(1.0, max(0.0, (progress - settings.begin) / (settings.end - settings.begin)))
    return final * (1 - (1 - ramp) ** settings.exponent)


def zeros(sparsity: float, size: int) -> int:
    """How many of ``size`` weights a sparsity means."""
    return int(np.rint(sparsity * size))


def smallest(weight: Tensor, sparsity: float) -> Tensor:
    """A boolean mask of the weight's shape: True at its ``zeros(sparsity)`` smallest magnitudes, ties by position."""
    return _at(weight.abs().flatten().argsort(stable=True)[: zeros(sparsity, weight.numel())], weight)


def _at(indices: Tensor, weight: Tensor) -> Tensor:
    """A boolean mask of the weight's shape, True at the flat ``indices``, whatever the weight's memory format."""
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[indices] = True
    return mask.view(weight.shape)


@torch.no_grad()
def _advance(
    step: int, *, weights: dict[str, Tensor], pruned: dict[str, Tensor], plan: Plan, settings: Settings, steps: int
) -> None:
    """Before the training and after each of its steps: put pruned weights back to 0.0, prune more where it is due."""
    last = math.ceil(settings.end * steps)
    due = step == last or (step < last and step % settings.interval == 0)
    for name, weight in weights.items():
        # The first call comes before any step: what is zero then was pruned earlier, in a training that is continued.
        # Filled, not multiplied by a mask, because that would leave -0.0s, which cost bytes in the packed file.
        weight.masked_fill_(pruned.setdefault(name, weight == 0), 0.0)
        if due:
            pruned[name] = smallest(weight, gradual_sparsity(plan[name], step / max(1, steps), settings))
            weight.masked_fill_(pruned[name], 0.0)


def _costs(values: np.ndarray, sizes: np.ndarray, all_weights: int, params: int) -> dict[str, float]:
    pruned = float(np.rint(values * sizes).sum())
    return {"sparsity": pruned / all_weights, "params": params - pruned}
