"""A module's forward pass as graphs of its operations, which can be copied and pickled."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import fx, nn


class WrittenOut:
    """A forward pass that runs the operations of a graph, as the attribute ``forward`` of a module.

    graphs: for training (True) and evaluation.
    """

    def __init__(self, module: nn.Module, graphs: dict[bool, fx.Graph]) -> None:
        self.module, self.graphs = module, graphs
        self.__signature__ = inspect.signature(module.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        return self.function(self.module, *bound.arguments.values())

    @property
    def function(self) -> Any:
        """The graph of the module's mode, as a function of the module and the arguments."""
        return self._functions[self.module.training]

    @cached_property
    def _functions(self) -> dict[bool, Any]:
        # A graph keeps the module that is made of it, hence the copy.
        made: Any = {mode: fx.GraphModule(self.module, copy.deepcopy(graph)) for mode, graph in self.graphs.items()}
        return {mode: type(module).forward for mode, module in made.items()}

    @property
    def __code__(self) -> Any:  # which torch.export asks for
        return self.function.__code__

    def __getstate__(self) -> dict[str, Any]:
        graphs = {mode: _as_list(graph) for mode, graph in self.graphs.items()}
        return {key: value for key, value in vars(self).items() if key != "_functions"} | {"graphs": graphs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, graphs={mode: _as_graph(nodes) for mode, nodes in state["graphs"].items()})


@dataclass(frozen=True)
class _Read:
    """A node as an argument of another, in a list of nodes."""

    name: str


def _as_list(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """(op, target, args, kwargs, name) of every node: pickle would follow a graph from node to node, too deeply."""

    def read(each: Any) -> Any:
        return _Read(each.name) if isinstance(each, fx.Node) else each

    def reads(arguments: Any) -> Any:
        return fx.node.map_aggregate(arguments, read)

    return [(node.op, node.target, reads(node.args), reads(node.kwargs), node.name) for node in graph.nodes]


def _as_graph(nodes: list[tuple[Any, ...]]) -> fx.Graph:
    graph, made = fx.Graph(), dict[str, fx.Node]()

    def read(arguments: Any) -> Any:
        return fx.node.map_aggregate(arguments, lambda each: made[each.name] if isinstance(each, _Read) else each)

    for op, target, args, kwargs, name in nodes:
        made[name] = graph.create_node(op, target, read(args), read(kwargs), name)
    return graph
