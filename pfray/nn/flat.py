"""A model as exporters want it: plain inputs and outputs, or tensors one by one.

Exporters know tensors, tuples, lists and dicts. Dataclasses and named tuples among the outputs become dicts and tuples,
so that a file needs no class of the user's.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.fx import GraphModule
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils._pytree import tree_leaves, tree_structure

from pfray.nn.inputs import Inputs, arguments, join, map_tensors, take, tensors


def plain(tree: Any) -> Any:
    """``tree`` with dicts in place of dataclasses and other mappings, and tuples in place of named tuples."""
    if isinstance(tree, Mapping):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(plain(value) for value in tree)
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {field.name: plain(getattr(tree, field.name)) for field in dataclasses.fields(tree)}
    return tree


def has_list(tree: Any) -> bool:
    """True if a list with a value for each sample is among the inputs."""
    values = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, tuple) else ()
    return isinstance(tree, list) or any(has_list(value) for value in values)


def two_samples(inputs: Inputs) -> Inputs:
    """The first sample twice, because torch.export makes a batch size of one a constant; once in a list."""
    one = take(inputs, slice(0, 1))
    return one if has_list(one) else join([one, one])


def is_plain(tree: Any) -> bool:
    """True if ``plain`` changes nothing."""
    if isinstance(tree, Mapping):
        return type(tree) is dict and all(isinstance(key, str) and is_plain(tree[key]) for key in tree)
    if isinstance(tree, tuple | list):
        return type(tree) in (tuple, list) and all(map(is_plain, tree))
    return not dataclasses.is_dataclass(tree)


def names(tree: Any, stem: str) -> list[str]:
    """A name for each of the tree's tensors, in order: keys and positions joined by ``_``, ``stem`` and a number at the
    top. Names that would be the same get their position at the end.
    """
    found = _names(plain(tree))
    whole = [f"{stem}_{name}" if name[:1].isdigit() else name or f"{stem}_0" for name in found]
    return [name if whole.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(whole)]


def _names(tree: Any) -> list[str]:
    if isinstance(tree, Tensor):
        return [""]
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, tuple | list) else ()
    return ["_".join(filter(None, (str(key), name))) for key, value in pairs for name in _names(value)]


def with_plain_outputs(model: nn.Module) -> nn.Module:
    """The same model, changed in place to give plain outputs."""
    signature = inspect.signature(model.forward)
    _changed(model, lambda forward, args, kwargs: plain(forward(*args, **kwargs)))
    # A file's inputs keep their names. A bound method's signature lacks the first parameter of its function's.
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    function: Any = cast(MethodType, model.forward).__func__
    function.__signature__ = signature.replace(
        parameters=[own, *signature.parameters.values()], return_annotation=inspect.Signature.empty
    )
    return model


def with_named_tensors(model: nn.Module, inputs: Inputs, outputs: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """(the same model, changed in place to take tensors by name and to give a dict of tensors by name, its inputs).

    The names are those of ``names``. outputs: the model's, for ``inputs``.
    """
    given, made = names(inputs, "args"), names(outputs, "output")
    sample = dict(zip(given, tensors(inputs), strict=True))
    if isinstance(model, GraphModule):
        _name_ends(model, inputs, given, made)
        return model, sample

    def named(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        values = iter([*args, *(kwargs[name] for name in given if name in kwargs)])
        positional, by_name = arguments(map_tensors(lambda _: next(values), inputs))
        return dict(zip(made, tensors(forward(*positional, **by_name)), strict=True))

    return _changed(model, named), sample


def _name_ends(model: GraphModule, inputs: Inputs, given: list[str], made: list[str]) -> None:
    """Let a graph of torch.export take only the tensors of its inputs, by name, and give a dict of tensors."""
    placeholders = model.graph.find_nodes(op="placeholder")
    for placeholder, value in zip(placeholders, tree_leaves(arguments(plain(inputs))), strict=True):
        if not isinstance(value, Tensor):  # a constant of the graph
            model.graph.erase_node(placeholder)
    output = model.graph.output_node()
    output.args = (tuple(value for value in tree_leaves(output.args[0]) if isinstance(value, fx.Node)),)
    specs = [tree_structure(tree) for tree in (((), dict.fromkeys(given)), dict.fromkeys(made))]
    model.graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(given, *specs)))
    model.recompile()


class Structured:
    """The structure of a model's outputs, to be filled with other tensors."""

    def __init__(self, outputs: Any) -> None:
        self.empty = map_tensors(lambda tensor: tensor.new_empty(0), outputs)

    def __call__(self, values: Any) -> Any:
        left = iter(tensors(values))
        return map_tensors(lambda _: next(left), self.empty)


def _changed(model: nn.Module, function: Callable[..., Any]) -> nn.Module:
    """``model`` with another forward pass, which ``function(old forward, args, kwargs)`` computes."""
    before = model.__dict__.get("forward")

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        old = before or type(self).forward.__get__(self)
        return function(old, args, kwargs)

    object.__setattr__(model, "forward", MethodType(forward, model))
    return model
