"""Mean and covariance of layers' inputs over calibration data, as LASSO and least squares need them.

Notation as in ``im2col.py``: a layer's rows are ``(R, D)`` with D = C K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pfray.errors import UnsupportedModel
from pfray.nn.attention import calling_projections
from pfray.nn.fingerprint import model_parts
from pfray.nn.modes import evaluating
from pfray.pruning.reconstruction.im2col import draw_positions, input_rows
from pfray.task import Task
from pfray.utils.cache import cache_dir, cache_key, load_tensors, save_tensors

BATCH = 250


@dataclass(frozen=True)
class Moments:
    """covariance: ``(D, D)``. mean: ``(D,)``."""

    covariance: Tensor
    mean: Tensor

    def uncentered(self) -> Moments:
        """The second moments about zero, for a layer without a place for a constant (``nn/dense.py``)."""
        return Moments(self.covariance + torch.outer(self.mean, self.mean), torch.zeros_like(self.mean))


def input_moments(
    model: nn.Module, task: Task, layers: Sequence[str], images: int, positions: int, seed: int = 0
) -> dict[str, Moments]:
    """Moments of the inputs of each of ``layers`` (all dense) over the first ``images`` training inputs, by name.

    positions: output positions sampled for each input. All runs of a layer count together; layers that do not run are
    left out. Raises UnsupportedModel for activations that are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def collect(name: str, layer: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        rows = input_rows(layer, inputs, draw_positions(layer, outputs, positions, generator).to(inputs.device)).float()
        sums[name] = sums.get(name, 0) + rows.sum(0).double()
        squares[name] = squares.get(name, 0) + (rows.T @ rows).double()
        counts[name] += len(rows)

    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda layer, inputs, outputs, name=name: collect(name, layer, inputs[0], outputs)
        )
        for name in layers
    ]
    try:
        with evaluating(model), calling_projections(model):
            for inputs, _ in task.batches(task.train.head(images), BATCH, next(model.parameters()).device):
                model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    moments = {}
    for name in layers:
        if not counts[name]:
            continue  # a layer that does not run in evaluation
        mean = sums[name] / counts[name]
        if not bool(squares[name].isfinite().all()):
            raise UnsupportedModel(
                f"layer {name} reads values that are not finite. Remedy: check the model's weights and the data's "
                "normalization"
            )
        covariance = squares[name] / counts[name] - torch.outer(mean, mean)
        moments[name] = Moments(covariance.float().cpu(), mean.float().cpu())
    return moments


def cached_moments(
    model: nn.Module, task: Task, layers: Sequence[str], images: int, positions: int
) -> dict[str, Moments]:
    """``input_moments``, from the cache folder if an equal model and data have been measured before."""
    key = cache_key(*model_parts(model, task), task.fingerprint(), tuple(layers), images, positions)
    path = cache_dir() / "moments" / f"{key}.safetensors"
    if (kept := load_tensors(path)) is None:
        moments = input_moments(model, task, layers, images, positions)
        kept = {f"{name}/{field}": tensor for name, m in moments.items() for field, tensor in vars(m).items()}
        if kept:
            save_tensors(path, kept)
    names = [name for name in layers if f"{name}/mean" in kept]
    return {name: Moments(kept[f"{name}/covariance"], kept[f"{name}/mean"]) for name in names}
