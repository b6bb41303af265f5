"""Mean and covariance of layers' inputs over calibration data, as LASSO and least squares need them.

Notation as in ``im2col.py``: a layer's rows are ``(R, D)`` with D = C K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pfray.errors import UnsupportedModel
from pfray.measure.cost import total_macs
from pfray.nn.attention import calling_projections
from pfray.nn.fingerprint import model_parts
from pfray.nn.im2col import draw_positions, input_rows
from pfray.nn.inputs import tensors
from pfray.nn.modes import evaluating, forward
from pfray.task import Task, example_input
from pfray.utils.cache import cache_dir, cache_key, made_once

BATCH = 100


@dataclass(frozen=True)
class Moments:
    """covariance: ``(D, D)``. mean: ``(D,)``."""

    covariance: Tensor
    mean: Tensor

    def uncentered(self) -> Moments:
        """The second moments about zero, for a layer without a place for a constant (``nn/dense.py``).

        In float64, in which the covariance survives beside large means.
        """
        mean = self.mean.double()
        return Moments(self.covariance.double() + torch.outer(mean, mean), torch.zeros_like(mean))


class RunningCovariance:
    """Covariance of rows x ``(R, D)``, and of x with rows y ``(R, O)``, over batches; sums are in float64.

    All rows are shifted by the first batch's means before they are multiplied (Chan, Golub and LeVeque 1983), because a
    difference of uncentered moments loses deviations that are small against the means.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add a batch; the products are computed in its type."""
        if not len(x):
            return
        both = [x] if y is None else [x, y]
        if not self.count:
            self.shifts = [rows.mean(0) for rows in both]
            self.sums = [rows.new_zeros(rows.shape[1], dtype=torch.float64) for rows in both]
            self.products = [x.new_zeros(x.shape[1], rows.shape[1], dtype=torch.float64) for rows in both]
        shifted = [rows - shift for rows, shift in zip(both, self.shifts, strict=True)]
        self.count += len(x)
        for total, products, rows in zip(self.sums, self.products, shifted, strict=True):
            total += rows.sum(0, dtype=torch.float64)
            products += shifted[0].T @ rows

    @property
    def means(self) -> list[Tensor]:
        """Means of x and y."""
        return [shift + total / self.count for shift, total in zip(self.shifts, self.sums, strict=True)]

    @property
    def covariances(self) -> list[Tensor]:
        """Covariance of x ``(D, D)``, and of x with y ``(D, O)``."""
        return [
            products / self.count - torch.outer(self.sums[0], total) / self.count**2
            for total, products in zip(self.sums, self.products, strict=True)
        ]


def input_moments(
    model: nn.Module, task: Task, layers: Sequence[str], images: int, positions: int, seed: int = 0
) -> dict[str, Moments]:
    """Moments of the inputs of each of ``layers`` (all dense) over the first ``images`` training inputs, by name.

    positions: output positions sampled for each input. All runs of a layer count together; layers that do not run are
    left out. Raises UnsupportedModel for activations that are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {name: RunningCovariance() for name in layers}

    def collect(name: str, layer: nn.Module, read: list[Tensor], outputs: Tensor) -> None:
        inputs = read[0]  # dense layers read one tensor, positional or by keyword
        places = draw_positions(layer, outputs, positions, generator).to(inputs.device)
        found[name].add(input_rows(layer, inputs, places).float())

    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda layer, args, kwargs, outputs, name=name: collect(name, layer, tensors((args, kwargs)), outputs),
            with_kwargs=True,
        )
        for name in layers
    ]
    try:
        with evaluating(model), calling_projections(model):
            for inputs, _ in task.batches(task.train.head(images), BATCH, next(model.parameters()).device):
                forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    moments = {}
    for name, own in found.items():
        if not own.count:
            continue  # a layer that does not run in evaluation
        covariance = own.covariances[0]
        if not bool(covariance.isfinite().all()):
            raise UnsupportedModel(
                f"layer {name} reads values that are not finite. Remedy: check the model's weights and the data's "
                "normalization"
            )
        moments[name] = Moments(covariance.float().cpu(), own.means[0].float().cpu())
    return moments


def moments_macs(model: nn.Module, task: Task, layers: Sequence[str], positions: int) -> int:
    """Multiply-adds of ``input_moments`` for one input: the forward pass, and the products of the layers' rows."""
    example = example_input(task, next(model.parameters()).device)
    products = 0

    def count(layer: nn.Module, outputs: Tensor) -> None:
        nonlocal products
        columns = layer.get_parameter("weight")[0].numel()
        products += draw_positions(layer, outputs[:1], positions, torch.Generator()).numel() * columns**2

    handles = [
        model.get_submodule(name).register_forward_hook(lambda layer, _, outputs: count(layer, outputs))
        for name in layers
    ]
    try:
        with calling_projections(model):
            return total_macs(model, example) + products
    finally:
        for handle in handles:
            handle.remove()


def moments_key(model: nn.Module, task: Task, layers: Sequence[str], images: int, positions: int) -> str:
    """The cache key of ``input_moments``, equal for equal models and data."""
    return cache_key(*model_parts(model, task), task.fingerprint(), tuple(layers), images, positions)


def cached_moments(
    model: nn.Module, task: Task, layers: Sequence[str], images: int, positions: int, key: str | None = None
) -> dict[str, Moments]:
    """``input_moments``, measured once on a machine for equal models and data.

    key: ``moments_key`` of the other arguments, if the caller has it.
    """
    key = key or moments_key(model, task, layers, images, positions)

    def measured() -> dict[str, Tensor]:
        moments = input_moments(model, task, layers, images, positions)
        return {f"{name}/{field}": tensor for name, own in moments.items() for field, tensor in vars(own).items()}

    kept = made_once(cache_dir() / "moments" / f"{key}.safetensors", measured)
    names = [name for name in layers if f"{name}/mean" in kept]
    return {name: Moments(kept[f"{name}/covariance"], kept[f"{name}/mean"]) for name in names}
