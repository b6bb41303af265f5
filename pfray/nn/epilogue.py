"""Operations behind a layer that belong to its outputs: a batch norm, the addition of a shortcut, an activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pfray.nn.dense import behind_norm
from pfray.nn.fx import ADDITIONS

# Modules and functions that change every value by itself.
ACTIVATIONS = {
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu,
    F.gelu, F.silu, F.mish, F.softplus, F.hardswish, F.hardsigmoid, F.hardtanh, F.sigmoid, F.tanh, torch.relu,
    torch.relu_, torch.sigmoid, torch.tanh, "relu", "relu_", "sigmoid", "tanh",
}  # fmt: skip
PASSING = nn.Identity | nn.modules.dropout._DropoutNd


class Addition(NamedTuple):
    """The addition behind a layer: its two summands, and the batch norm behind the layer, if any."""

    own: fx.Node
    other: fx.Node
    norm: str | None


def find_addition(
    nodes: Sequence[fx.Node], node: fx.Node, norms: Mapping[str, str], model: nn.Module
) -> Addition | None:
    """The addition that a layer's output enters, through at most a batch norm; None without one.

    The layers of the other summand run before, so the later of two summands corrects both.
    """
    norm, end = norms.get(str(node.target)), node
    if norm is not None:
        if len(node.users) != 1:
            return None
        end = next(iter(node.users))
    if len(end.users) != 1:
        return None
    return _addition(nodes, node, end, norm, model)


@dataclass(frozen=True)
class Epilogue:
    """norm: name of the batch norm that reads the layer. other: the node added to the result. activation: what comes
    then, on a tensor of any shape; the identity if there is none."""

    norm: str | None
    other: fx.Node | None
    activation: Callable[[Tensor], Tensor]


def epilogue(nodes: Sequence[fx.Node], node: fx.Node, model: nn.Module, per_row: bool) -> Epilogue:
    """What runs behind the layer of ``node`` and reads nothing else, in this order; identities between do not count.

    per_row: the outputs have their channels where a batch norm has them.
    """
    norm, other, end = None, None, node
    while len(end.users) == 1:
        user = next(iter(end.users))
        module = model.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, PASSING):
            end = user
        elif _is_norm(module) and per_row and norm is None and other is None:
            norm, end = str(user.target), user
        elif other is None and (addition := _addition(nodes, node, end, norm, model)):
            other, end = addition.other, user
        else:
            return Epilogue(norm, other, _activation(user, module) or _unchanged)
    return Epilogue(norm, other, _unchanged)


def _addition(
    nodes: Sequence[fx.Node], layer: fx.Node, end: fx.Node, norm: str | None, model: nn.Module
) -> Addition | None:
    total = next(iter(end.users))
    if total.target not in ADDITIONS or len(total.all_input_nodes) != 2 or total.kwargs or len(total.args) != 2:
        return None
    other = next(read for read in total.all_input_nodes if read is not end)
    later = set(nodes[nodes.index(layer) :])
    return Addition(end, other, norm) if _needs_no_layer(other, later, model) else None


def _needs_no_layer(node: fx.Node, later: set[fx.Node], model: nn.Module) -> bool:
    """True if the node's value needs no module with parameters among the nodes ``later``, such as a slice of what ran
    before."""
    if node not in later:
        return True
    if node.op == "call_module" and next(model.get_submodule(str(node.target)).parameters(), None) is not None:
        return False
    return all(_needs_no_layer(read, later, model) for read in node.all_input_nodes)


def _is_norm(module: nn.Module | None) -> bool:
    own = isinstance(module, nn.modules.batchnorm._BatchNorm) and not behind_norm(module)
    return own and module.running_var is not None  # type: ignore[union-attr]


def _activation(node: fx.Node, module: nn.Module | None) -> Callable[[Tensor], Tensor] | None:
    """The elementwise function of a node that reads one tensor; None for any other node."""
    if module is not None:
        return module if type(module) in ACTIVATIONS else None
    if node.target not in ACTIVATIONS or len(node.all_input_nodes) != 1:
        return None
    function: Any = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    return lambda values: function(values, *node.args[1:], **node.kwargs)


def _unchanged(values: Tensor) -> Tensor:
    return values
