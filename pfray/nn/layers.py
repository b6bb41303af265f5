"""Convolutions and linear layers of a model, by name and in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from pfray.errors import UnsupportedModel
from pfray.nn.inputs import Inputs, call
from pfray.nn.modes import evaluating

WeightLayer = nn.modules.conv._ConvNd | nn.Linear


def weight_layers(model: nn.Module, *, computed: bool = False) -> dict[str, WeightLayer]:
    """All convolutions and linear layers, by name; the first of layers that share a weight.

    computed: skip layers whose weight is computed from other tensors. Otherwise they raise UnsupportedModel, because a
    change of such a weight would not last.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, WeightLayer)}
    plain = {name: module for name, module in layers.items() if "weight" in module._parameters}
    others = [name for name in layers if name not in plain]
    if others and not computed:
        raise UnsupportedModel(
            f"{others[0]}: its weight is computed from other tensors, by torch.nn.utils.prune, weight_norm or a "
            "parametrization. Remedy: make it a plain one with prune.remove, remove_weight_norm or "
            "parametrize.remove_parametrizations"
        )
    shared = {id(module.weight): name for name, module in reversed(plain.items())}
    return {name: module for name, module in plain.items() if shared[id(module.weight)] == name}


def sharing(model: nn.Module, name: str) -> list[str]:
    """Names of all layers that share the weight of the layer ``name``, itself included."""
    weight = model.get_submodule(name).get_parameter("weight")
    layers = ((other, module) for other, module in model.named_modules() if isinstance(module, WeightLayer))
    return [other for other, module in layers if module.weight is weight]


def is_depthwise(module: nn.Module) -> bool:
    """True for a convolution whose output channels each read one input channel."""
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.in_channels > 1


def is_conv1d(module: nn.Module) -> bool:
    """True for transformers' ``Conv1D``, a linear layer with a weight ``(inputs, outputs)``."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def has_features_last(module: nn.Module) -> bool:
    """True for linear layers, and layers for sequences, whose inputs and outputs are ``(N, ..., C)``."""
    return isinstance(module, nn.Linear | nn.RNNBase | nn.MultiheadAttention) or is_conv1d(module)


def run_order(model: nn.Module, example: Inputs) -> list[str]:
    """Names of the ``weight_layers`` that run, in the order of their first run."""
    ran: dict[str, None] = {}
    layers = weight_layers(model).items()
    run_hooked(model, example, ((layer, lambda *_, name=name: ran.setdefault(name)) for name, layer in layers))
    return list(ran)


def run_hooked(model: nn.Module, example: Inputs, hooks: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> None:
    """Run the model once, in evaluation mode, with temporary forward hooks on the layers."""
    handles = [layer.register_forward_hook(hook) for layer, hook in hooks]
    try:
        with evaluating(model):
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()


def without_skipped(names: Iterable[str], skip: Sequence[str], kind: str = "layer") -> list[str]:
    """``names`` without those in the setting ``skip``. kind: the noun for messages.

    Raises UnsupportedModel for an unknown name in ``skip``.
    """
    names = list(names)
    unknown = [name for name in skip if name not in names]
    if unknown:
        raise UnsupportedModel(f"learner.skip: no {kind} '{unknown[0]}'. Allowed: {', '.join(names) or 'none'}")
    return [name for name in names if name not in skip]
