"""Bias correction: the mean of a quantized layer's output error, subtracted from its bias.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2. With the
weight W + e in place of W the outputs are off by E[e x] = e E[x] on average, output channel by output channel. E[x] is
the float model's mean over training inputs (the paper derives it from batch norms where there are no data), so a
correction costs the layer's pass over a single input, whatever the weights are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pfray.nn.attention import module_by_module
from pfray.nn.layers import has_features_last, sharing
from pfray.nn.modes import evaluating, forward
from pfray.task import Task

BATCH = 250


def mean_inputs(model: nn.Module, names: Sequence[str], task: Task, images: int) -> dict[str, Tensor]:
    """E[x] of each layer over the first ``images`` training inputs: ``(C, ...)``, of linear layers ``(C,)``.

    Layers that run more than once for an input, share their weight, read inputs of varying size or values that are not
    finite are left out.
    """
    totals: dict[str, list[Tensor]] = {name: [] for name in names if len(sharing(model, name)) == 1}
    runs: Counter[str] = Counter()

    def look(name: str, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        values = (inputs[0] if inputs else named["input"]).float()
        axes = list(range(values.dim() - 1)) if has_features_last(layer) else [0]
        totals[name].append(len(values) * values.mean(axes))
        runs[name] += 1

    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda layer, inputs, named, name=name: look(name, layer, inputs, named), with_kwargs=True
        )
        for name in totals
    ]
    split, batches = task.train.head(images), 0
    try:
        with module_by_module(), evaluating(model):
            for inputs, _ in task.batches(split, BATCH, next(model.parameters()).device):
                forward(model, inputs)
                batches += 1
    finally:
        for handle in handles:
            handle.remove()
    means = {
        name: torch.stack(own).sum(0).div(len(split)).clone()
        for name, own in totals.items()
        if runs[name] == batches and len({each.shape for each in own}) == 1
    }
    return {name: mean for name, mean in means.items() if mean.isfinite().all()}


@torch.no_grad()
def mean_error(layer: nn.Module, change: Tensor, mean: Tensor) -> Tensor:
    """E[e x] ``(O,)`` of a layer whose weight changes by e. mean: E[x]."""
    parameters = {"weight": change}
    if getattr(layer, "bias", None) is not None:
        parameters["bias"] = torch.zeros_like(layer.get_parameter("bias"))
    errors = functional_call(layer, parameters, (mean.to(change)[None],))
    return errors[0] if has_features_last(layer) else errors[0].flatten(1).mean(1)
