"""Layer shapes that the search's agents observe (He et al. 2018, arXiv 1802.03494, section 3.1)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from pfray.nn.inputs import Inputs
from pfray.nn.layers import WeightLayer, run_hooked
from pfray.space import SHAPE, CompressionSpace


def with_layer_shapes(space: CompressionSpace, model: nn.Module, example: Inputs) -> CompressionSpace:
    """``space`` with the ``SHAPE`` of a layer added to the facts of the knob that is named after it.

    In a pipeline the layer's name follows a learner's and a colon. Other knobs stay as they are.
    """
    shapes = layer_shapes(model, example)
    knobs = (replace(knob, facts={**knob.facts, **shapes.get(_layer(knob.name), {})}) for knob in space.knobs)
    return replace(space, knobs=tuple(knobs))


def layer_shapes(model: nn.Module, example: Inputs) -> dict[str, dict[str, float]]:
    """``SHAPE`` of every convolution and linear layer that runs on the input ``example``, by name.

    A linear layer has the stride 0 and the kernel 1 (AMC's code). The first run of a layer counts, and the first number
    of its kernel and strides.
    """
    found: dict[str, dict[str, float]] = {}

    def describe(name: str, layer: Any, arguments: tuple[Any, ...], _: Any) -> None:
        if name in found or not (arguments and isinstance(arguments[0], Tensor)):
            return
        if isinstance(layer, nn.Linear):
            shape = (layer.out_features, layer.in_features, 1, 1, 0, 1)
        else:
            height, width = (1, 1, *arguments[0].shape[2:])[-2:]
            shape = (layer.out_channels, layer.in_channels, height, width, layer.stride[0], layer.kernel_size[0])
        found[name] = dict(zip(SHAPE, map(float, shape), strict=True))

    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, WeightLayer))
    run_hooked(model, example, ((layer, partial(describe, name)) for name, layer in layers))
    return found


def _layer(knob: str) -> str:
    return knob.rpartition(":")[2]
