"""The forward pass as a torch.fx graph, and walks through it node by node."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from pfray.errors import first_line
from pfray.nn.forward_graph import WrittenOut
from pfray.nn.inputs import Inputs, arguments, call, tensors
from pfray.utils.random_state import generators, kept_generators

# Devices whose autocast a forward pass may switch.
AUTOCAST = ("cpu", "cuda")
# Targets of the nodes that add two tensors.
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


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
    if len(found) != len(wanted) or not all(map(_alike, found, wanted)):
        raise Untraceable("its outputs change when it is traced")
    return nodes


def own_operations(module: nn.Module) -> dict[bool, fx.Graph]:
    """The operations of a module's own forward pass, in which its children are nodes, in training and not.

    Raises Untraceable also for what no list of operations does: random draws of Python's, attributes that change,
    operations without gradients or out of autocast.
    """
    graphs = {}
    try:
        own = copy.deepcopy(module, {id(each): each for each in module.parameters()})
        drawn, attributes = generators(), _attributes(own)
        with kept_generators(), _autocast_everywhere():
            for training in (True, False):
                own.training = training
                graphs[training] = _OwnTracer().trace(own)
            own.training = module.training
            if generators() != drawn:
                raise Untraceable("it draws random numbers that are not an operation's")
    except Exception as error:
        raise Untraceable(first_line(error)) from error
    # Tensors that the forward pass makes of nothing, the example's, would be among them.
    if _attributes(own) != attributes:
        raise Untraceable("it changes its attributes")
    return graphs


def _attributes(module: nn.Module) -> dict[tuple[str, str], Any]:
    """The identity of every attribute, and of the values in lists and mappings, by module and name."""
    found: dict[tuple[str, str], Any] = {}
    for name, each in module.named_modules():
        for key, value in vars(each).items():
            inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | set) else ()
            found[name, key] = (id(value), [id(own) for own in inside])
    return found


def _modes() -> tuple[bool, ...]:
    """Modes of torch that a forward pass can switch for a part of itself."""
    return torch.is_grad_enabled(), *(torch.is_autocast_enabled(kind) for kind in AUTOCAST)


@contextmanager
def _autocast_everywhere() -> Iterator[None]:
    """Gradients and autocast are on, so that a part without them is noticed."""
    before = {kind: torch.is_autocast_enabled(kind) for kind in AUTOCAST}
    try:
        for kind in AUTOCAST:
            torch.set_autocast_enabled(kind, True)
        with torch.enable_grad():
            yield
    finally:
        for kind, enabled in before.items():
            torch.set_autocast_enabled(kind, enabled)


def _alike(own: Tensor, other: Tensor) -> bool:
    """True if the tensors have one shape and type, and are equal but for rounding."""
    if own.shape != other.shape or own.dtype != other.dtype:
        return False
    return torch.allclose(own, other, equal_nan=True) if own.is_floating_point() else torch.equal(own, other)


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


def arguments_in(
    model: nn.Module, nodes: Sequence[fx.Node], cut: set[str], example: Any
) -> dict[fx.Node, tuple[Any, Any]]:
    """(args, kwargs) of each of ``nodes``, traced in a like model, as they are in ``model``.

    Numbers that a forward pass computes from its layers' sizes are other ones there. Raises Untraceable.
    """
    others = traced_nodes(model, cut, example)
    # Constants of the tracing may have other names.
    if [(n.op, n.op != "get_attr" and n.target) for n in nodes] != [
        (n.op, n.op != "get_attr" and n.target) for n in others
    ]:
        raise Untraceable("its operations vary with the sizes of its layers")
    same = dict(zip(others, nodes, strict=True))
    return {
        node: (fx.node.map_arg(other.args, same.__getitem__), fx.node.map_arg(other.kwargs, same.__getitem__))
        for other, node in same.items()
    }


class _Tracer(fx.Tracer):
    """Traces into torch's own modules only if a layer inside is cut; otherwise they are one node.

    The parts of ``chunk`` and ``split`` are a tuple, for loops and lists, where their number is written in the call.
    """

    def __init__(self, cut: set[str]) -> None:
        super().__init__()
        self.cut = cut

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        kind, own = type(root), vars(root).get("forward")
        if isinstance(own, WrittenOut):  # torch.fx looks for the forward pass in the class
            root.__class__ = type(kind.__name__, (kind,), {"forward": own.function})
        try:
            return super().trace(root, concrete_args)
        finally:
            root.__class__ = kind

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        inside = any(layer.startswith(f"{name}.") for layer in self.cut)
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)  # of another library, with an activation inside
        return not inside and (norm or super().is_leaf_module(module, name))

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **others: Any) -> Any:
        made: Any = super().create_proxy(kind, target, args, kwargs, *rest, **others)
        given = args[1] if len(args) > 1 else next(iter(kwargs.values()), None)
        if target in ("chunk", torch.chunk) and isinstance(given, int):
            return tuple(made[part] for part in range(given))
        if target in ("split", torch.split) and isinstance(given, tuple | list):
            return tuple(made[part] for part in range(len(given)))
        return made


class _OwnTracer(_Tracer):
    """Traces a single module: its children are nodes, and so are its buffers, which it may change."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__(set())
        self.modes = _modes()

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True

    def create_proxy(self, *args: Any, **others: Any) -> Any:
        if _modes() != self.modes:
            raise Untraceable("a part of it runs without gradients or out of autocast")
        return super().create_proxy(*args, **others)


class Walk:
    """The values of a graph's nodes in one model, a list over the batches; computed on demand.

    own: (args, kwargs) of nodes that differ in this model, by ``arguments_in``.
    """

    def __init__(
        self,
        nodes: Sequence[fx.Node],
        model: nn.Module,
        batches: Sequence[Inputs],
        own: Mapping[fx.Node, tuple[Any, Any]] | None = None,
    ) -> None:
        self.model, self.own = model, own or {}
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
        args, kwargs = self.own.get(node, (node.args, node.kwargs))
        args = fx.node.map_arg(args, lambda read: self.values[read][batch])
        kwargs = fx.node.map_arg(kwargs, lambda read: self.values[read][batch])
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.model)
        if node.op == "call_module":
            return self.model.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return args[0] if node.op == "output" else node.target(*args, **kwargs)  # type: ignore[operator]


def peak_bytes(nodes: Sequence[fx.Node], model: nn.Module, example: Inputs) -> int:
    """Memory of the values that a walk with one input holds at the same time, at most."""
    walk, peak = Walk(nodes, model, [example]), 1
    for node in nodes:
        walk.value(node)
        peak = max(peak, walk.bytes)
        walk.release(node)
    return peak
