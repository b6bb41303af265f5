"""Removable layers and blocks of a network, found and proven on a copy. Notation as in ``graph.py``."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pfray.errors import UnsupportedModel, first_line
from pfray.measure.cost import count_params, layer_macs, total_macs
from pfray.nn.fx import ADDITIONS, Untraceable, traced_nodes
from pfray.nn.inputs import Inputs, call, map_tensors, tensors
from pfray.nn.layers import is_depthwise
from pfray.nn.modes import evaluating
from pfray.pruning.layers.graph import Block, Layer, LayerGraph, remove_layers

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.ELU)
POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
# Modules and functions that compute each channel from the same channel alone.
BY_CHANNEL = (nn.BatchNorm2d, nn.BatchNorm1d, *ACTIVATIONS, *POOLINGS, nn.Dropout, nn.Identity, nn.Flatten)
FUNCTIONS = {F.relu, torch.relu, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.flatten, F.dropout,
             "relu", "relu_", "flatten", "view", "reshape"}  # fmt: skip


def layer_graph(model: nn.Module, example: Inputs) -> LayerGraph:
    """The layer graph of ``model``, proven on a copy.

    example: the inputs of one sample. Raises UnsupportedModel if the forward pass cannot be traced.
    """
    model = copy.deepcopy(model).cpu().eval()
    example = map_tensors(Tensor.cpu, example)
    try:
        with torch.no_grad():
            nodes = traced_nodes(model, set(), example)
            shapes = _shapes(model, example)
    except (Untraceable, RuntimeError) as error:
        raise UnsupportedModel(
            f"the layers of {type(model).__name__} cannot be followed one by one ({first_line(error)}). Remedy: a "
            "model that torch.fx can trace, or another learner, such as channel_pruned"
        ) from error
    found = _find(model, nodes, shapes, example)
    return _proven(model, example, found)


def _shapes(model: nn.Module, example: Inputs) -> dict[str, list[tuple[torch.Size, torch.Size]]]:
    """(input, output) shapes of every run, by module; empty shapes for runs with several inputs or outputs."""
    shapes: dict[str, list[tuple[torch.Size, torch.Size]]] = {}

    def note(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        single = len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)
        shapes.setdefault(name, []).append((inputs[0].shape, output.shape) if single else (torch.Size(), torch.Size()))

    handles = [
        module.register_forward_hook(lambda _, inputs, output, name=name: note(name, inputs, output))
        for name, module in model.named_modules()
    ]
    with evaluating(model):
        call(model, example)
    for handle in handles:
        handle.remove()
    return shapes


def _find(
    model: nn.Module,
    nodes: Sequence[fx.Node],
    shapes: dict[str, list[tuple[torch.Size, torch.Size]]],
    example: Inputs,
) -> LayerGraph:
    calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
    macs = layer_macs(model, example)
    is_layer = {
        node: isinstance(model.get_submodule(str(node.target)), nn.Conv2d | nn.Linear)
        for node in nodes
        if node.op == "call_module" and calls[str(node.target)] == 1
    }
    order = [node for node in nodes if is_layer.get(node)]
    number = {node: index for index, node in enumerate(order)}
    names = [str(node.target) for node in order]
    modules: list[Any] = [model.get_submodule(name) for name in names]
    dense = [isinstance(m, nn.Linear) or m.groups == 1 for m in modules]
    channels = [m.out_features if isinstance(m, nn.Linear) else m.out_channels for m in modules]
    ways = [_way(node, model, number) for node in order]
    source: dict[int, int] = {r: i for i, way in enumerate(ways) for r in way.readers}
    in_entries = [m.in_features if isinstance(m, nn.Linear) else m.in_channels for m in modules]
    layers: list[Layer] = []
    kept: dict[str, str] = {}
    for i, (name, module, way) in enumerate(zip(names, modules, ways, strict=True)):
        goes = tuple(
            str(n.target) for n in way.path
            if n.op == "call_module" and calls[str(n.target)] == 1 and _goes_along(model.get_submodule(str(n.target)))
        )  # fmt: skip
        stride = 1 if isinstance(module, nn.Linear) else module.stride[0]
        reason = _obstacle(i, modules, dense, way, shapes[name])
        if _reads_input(order[i], model):
            reason = "it reads the input"
        path = tuple(n for n in way.path if str(n.target) not in goes)
        if reason is None and stride > 1 and any(_spatial(n, model) for n in path):
            reason = "its stride cannot be moved past what lies behind it"
        if reason:
            kept[name] = reason
        kind = "linear" if isinstance(module, nn.Linear) else "depthwise" if is_depthwise(module) else "conv"
        weights = np.array([macs[name], module.weight.numel()], dtype=float)
        rest = sum(p.numel() for n in goes for p in model.get_submodule(n).parameters())
        rest += 0 if module.bias is None else module.bias.numel()
        layers.append(
            Layer(
                name=name,
                kind=kind,
                channels=channels[i],
                source=source.get(i),
                readers=way.readers,
                entries=in_entries[i] // channels[source[i]] if i in source else in_entries[i],
                per_entry=weights / in_entries[i] if dense[i] else np.zeros(2),
                own=np.array([0.0, rest]) + (0.0 if dense[i] else weights),
                behind=goes,
                path=path,
                removable=reason is None,
                mover=stride,
            )
        )
    total = np.array([total_macs(model, example), count_params(model)[0]], dtype=float)
    whole = LayerGraph(tuple(layers), (), np.zeros(2)).costs(())
    constant = total - np.array([whole["macs"], whole["params"]])
    blocks = _blocks(nodes, shapes, names)
    return _cheaper(LayerGraph(tuple(layers), blocks, constant, kept))


@dataclass(frozen=True)
class _Way:
    """path: nodes between a layer and its readers. readers: indices of layers. other: why something else reads it too.
    """

    path: tuple[fx.Node, ...]
    readers: tuple[int, ...]
    other: str


def _way(start: fx.Node, model: nn.Module, number: dict[fx.Node, int]) -> _Way:
    path: list[fx.Node] = []
    readers: set[int] = set()
    other, ahead = "", [start]
    while ahead:
        node = ahead.pop(0)
        users = list(node.users)
        if len(users) > 1 and not all(user in number for user in users):
            other = other or "what it gives is read in several ways"
        for user in users:
            if user in number:
                readers.add(number[user])
            elif _by_channel(user, model):
                path.append(user)
                ahead.append(user)
            else:
                other = "it gives the output" if user.op == "output" else "another operation reads what it gives"
    return _Way(tuple(path), tuple(sorted(readers)), other)


def _reads_input(node: fx.Node, model: nn.Module) -> bool:
    """True if only channelwise operations lie between the model's input and a layer."""
    before = node.all_input_nodes[0]
    while _by_channel(before, model):
        before = before.all_input_nodes[0]
    return before.op == "placeholder"


def _by_channel(node: fx.Node, model: nn.Module) -> bool:
    if len(node.all_input_nodes) != 1:
        return False
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), BY_CHANNEL)
    return node.op in ("call_function", "call_method") and node.target in FUNCTIONS


def _goes_along(module: nn.Module) -> bool:
    return isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d, *ACTIVATIONS))


def _spatial(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), (*POOLINGS, nn.Flatten))
    return node.target not in (F.relu, torch.relu, F.dropout, "relu", "relu_")


def _obstacle(
    index: int,
    modules: Sequence[Any],
    dense: Sequence[bool],
    way: _Way,
    shapes: Sequence[tuple[torch.Size, torch.Size]],
) -> str | None:
    """Reason why a layer has to stay; None if it can go."""
    module, (read, given) = modules[index], shapes[0]
    if way.other or not way.readers:
        return way.other or "nothing reads what it gives"
    if not all(dense[reader] for reader in way.readers):
        return "a layer that is not dense reads what it gives"
    if not dense[index] and read[1] != given[1]:
        return "it is grouped, and changes the number of channels"
    if isinstance(module, nn.Conv2d):
        stride = module.stride[0]
        if len(set(module.stride)) > 1 or [-(-size // stride) for size in read[2:]] != list(given[2:]):
            return "it changes the size of the feature map by more than its stride"
        if stride > 1 and not all(isinstance(modules[reader], nn.Conv2d) for reader in way.readers):
            return "its stride cannot be moved past what lies behind it"
    elif len(given) != 2:
        return "it is applied to several places"
    return None


def _blocks(
    nodes: Sequence[fx.Node],
    shapes: dict[str, list[tuple[torch.Size, torch.Size]]],
    names: Sequence[str],
) -> tuple[Block, ...]:
    """Modules that contain an addition, run once, and keep the shape of their input."""
    blocks: dict[str, Block] = {}
    for node in nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if node.target not in ADDITIONS or not stack:
            continue
        name = str(stack[-1][0])
        members = tuple(i for i, layer in enumerate(names) if layer.startswith(f"{name}."))
        runs = shapes.get(name, [])
        if name and members and len(runs) == 1 and runs[0][0] == runs[0][1] and len(runs[0][0]):
            blocks[name] = Block(name, members)
    return tuple(blocks.values())


def _cheaper(found: LayerGraph) -> LayerGraph:
    """The graph without layers whose removal could raise a cost, because they narrow the inputs of later layers."""
    layers, kept = list(found.layers), dict(found.kept)
    for index, layer in enumerate(found.layers):
        if not layer.removable:
            continue
        # The widest input that it may have to pass on: all removable layers before it are out.
        before = [other.name for other in layers[:index] if other.removable]
        for gone in ([], before):
            trial = LayerGraph(tuple(layers), found.blocks, found.constant)
            with_it, without = trial.costs(gone), trial.costs([*gone, layer.name])
            widths = trial.widths(trial.out(gone))
            costlier = any(without[unit] >= with_it[unit] for unit in with_it)
            if costlier or (len(layer.readers) > 1 and widths[index] > layer.channels):
                layers[index] = replace(layer, removable=False)
                kept[layer.name] = "without it the layers behind it would cost more than it does"
                break
    return LayerGraph(tuple(layers), found.blocks, found.constant, kept)


def _proven(model: nn.Module, example: Inputs, found: LayerGraph) -> LayerGraph:
    """The graph without layers and blocks whose removal fails, changes the output's shape or mispredicts costs."""
    names = found.names
    if all(_works(model, example, found, gone) for gone in (names, names[::2], names[1::2])):
        return found
    fail = [name for name in names if not _works(model, example, found, [name])]
    blocks = tuple(block for block in found.blocks if block.name not in fail)
    layers = tuple(replace(layer, removable=False) if layer.name in fail else layer for layer in found.layers)
    kept = {**found.kept, **dict.fromkeys(fail, "the forward pass fails without it")}
    left = LayerGraph(layers, blocks, found.constant, kept)
    if fail and all(_works(model, example, left, gone) for gone in (left.names, left.names[::2], left.names[1::2])):
        return left
    kept = dict.fromkeys(names, "what is left of the model without several layers cannot be predicted")
    return LayerGraph(tuple(replace(layer, removable=False) for layer in layers), (), found.constant, kept)


def _works(model: nn.Module, example: Inputs, found: LayerGraph, gone: Sequence[str]) -> bool:
    student = copy.deepcopy(model)
    try:
        remove_layers(student, found, gone)
        shapes = _output_shapes(student, example)
        costs = {"macs": total_macs(student, example), "params": count_params(student)[0]}
    except Exception:
        return False
    return shapes == _output_shapes(model, example) and costs == found.costs(gone)


def _output_shapes(model: nn.Module, example: Inputs) -> list[torch.Size]:
    with evaluating(model):
        return [output.shape for output in tensors(call(model, example))]
