"""The forward pass as a torch.fx graph, and walks through it node by node."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from pfray.errors import first_line
from pfray.nn.inputs import Inputs, arguments, call

# Targets of the nodes that add two tensors.
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


def tensors(outputs: Any) -> list[Tensor]:
    """All tensors of a model's outputs: one tensor, or tuples, lists and dictionaries of them."""
    return [leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


class Untraceable(Exception):
    """The model's operations cannot be followed. The text says why, in plain words."""


def traced_nodes(model: nn.Module, cut: set[str], example: Inputs) -> list[fx.Node]:
    """The nodes of the forward pass in order, with every layer in ``cut`` as a node of its own. Raises Untraceable.

    Arguments without a tensor, such as flags and defaults, are constants with the example's value.
    """
    try:
        constants = {name: value for name, value in _bound(model, example).items() if _is_constant(name, value)}
        nodes = list(_Tracer(cut).trace(model, constants).nodes)
        found, wanted = tensors(Walk(nodes, model, [example]).value(nodes[-1])), tensors(call(model, example))
    except Exception as error:
        raise Untraceable(first_line(error)) from error
    # Code that asks for the type of a tensor, say, takes another branch under torch.fx.
    if len(found) != len(wanted) or not all(
        torch.allclose(own, other, equal_nan=True) for own, other in zip(found, wanted, strict=True)
    ):
        raise Untraceable("its outputs change when it is traced")
    return nodes


def _bound(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """All arguments of the forward pass by name, defaults included, the variable ones as ``*name`` and ``**name``."""
    args, kwargs = arguments(inputs)
    signature = inspect.signature(model.forward)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return {stars.get(signature.parameters[name].kind, "") + name: value for name, value in bound.arguments.items()}


def _is_constant(name: str, value: Any) -> bool:
    # torch.fx has no constants for variable arguments.
    return not name.startswith("*") and not tensors(value)


class _Tracer(fx.Tracer):
    """Traces into torch's own modules only if a layer inside is cut; otherwise they are one node."""

    def __init__(self, cut: set[str]) -> None:
        super().__init__()
        self.cut = cut

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        inside = any(layer.startswith(f"{name}.") for layer in self.cut)
        return not inside and super().is_leaf_module(module, name)


class Walk:
    """The values of a graph's nodes in one model, a list over the batches; computed on demand."""

    def __init__(self, nodes: Sequence[fx.Node], model: nn.Module, batches: Sequence[Inputs]) -> None:
        self.model = model
        self.arguments: list[dict[str, Any]] = [{} for _ in batches]
        for found, inputs in zip(self.arguments, batches, strict=True):
            for name, value in _bound(model, inputs).items():
                # Each part of a constant is a placeholder of its own, numbered from 1.
                parts = enumerate(_pytree.tree_leaves(value), 1) if _is_constant(name, value) else ()
                found |= {name: value, **{f"{name}_{number}": part for number, part in parts}}
        self.values: dict[fx.Node, list[Any]] = {}
        self.last_use = {read: node for node in nodes for read in node.all_input_nodes}

    def value(self, node: fx.Node) -> list[Any]:
        if node not in self.values:
            for read in node.all_input_nodes:
                self.value(read)
            self.values[node] = [self._compute(node, batch) for batch in range(len(self.arguments))]
        return self.values[node]

    def release(self, node: fx.Node) -> None:
        """Forget values that only nodes up to this one read; to be called in the graph's order."""
        for read in node.all_input_nodes:
            if self.last_use[read] is node:
                self.values.pop(read, None)

    @property
    def bytes(self) -> int:
        """Memory of the tensors held now."""
        storages = [tensor.untyped_storage() for tensor in tensors(list(self.values.values()))]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def _compute(self, node: fx.Node, batch: int) -> Any:
        if node.op == "placeholder":
            return self.arguments[batch][str(node.target)]
        args = fx.node.map_arg(node.args, lambda read: self.values[read][batch])
        kwargs = fx.node.map_arg(node.kwargs, lambda read: self.values[read][batch])
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.model)
        if node.op == "call_module":
            return self.model.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return args[0] if node.op == "output" else node.target(*args, **kwargs)  # type: ignore[operator]
