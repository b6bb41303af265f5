"""Linear maps in place of removed layers, fitted by least squares and multiplied into the layers behind.

Notation: a layer reads x ``(w,)`` at one place of its input, and the layers behind it read z ``(n,)`` there, fitted as
P x + b by least squares over training inputs. W ``(O, n, K)`` are a reader's weights, K kernel positions. The reader
gets the weights W P, and its outputs the constant W b. The maps of several removed layers in a row are multiplied.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pfray.nn.inputs import count
from pfray.nn.modes import evaluating, forward, place
from pfray.pruning.layers.graph import Layer, LayerGraph, behind_which, remove_layers
from pfray.pruning.reconstruction.least_squares import ridge_solve
from pfray.task import Task

# Inputs in a batch, and places of each feature map that P is fitted at.
BATCH = 100
PLACES = 16
# Keeps P small in directions that the inputs do not determine.
RIDGE = 1e-2


@dataclass
class Maps:
    """maps: P ``(n, w)`` and b ``(n,)`` by removable layer. errors: share of the variance lost, by layer or block."""

    found: LayerGraph
    maps: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def fit_maps(model: nn.Module, found: LayerGraph, task: Task, images: int) -> Maps:
    """P, b and the errors, from the first ``images`` training inputs, at ``PLACES`` random places of each."""
    layers = {layer.name: layer for layer in found.layers if layer.removable}
    moments = {name: _Moments() for name in layers}
    added = {block.name: np.zeros(2) for block in found.blocks}
    read: dict[str, Tensor] = {}
    handles = []

    def keep(name: str, inputs: tuple[Tensor, ...]) -> None:
        read[name] = inputs[0].clone()  # an activation may work in place

    def compare(name: str, output: Tensor) -> None:
        missed, varied = (output - read[name]).square().sum(), (output - output.mean()).square().sum()
        added[name] += [missed.item(), varied.item()]

    for name in {*layers, *(found.layers[layer.readers[0]].name for layer in layers.values()), *added}:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs)))
        if name in added:
            handles.append(module.register_forward_hook(lambda _, __, output, name=name: compare(name, output)))
    generator = torch.Generator().manual_seed(0)
    try:
        with evaluating(model):
            for inputs, _ in task.batches(task.train.head(images), BATCH, next(model.parameters()).device):
                forward(model, inputs)
                for name, layer in layers.items():
                    wanted = read[found.layers[layer.readers[0]].name]
                    given = _carry(layer, model, read[name])
                    # Flattened feature maps hold all places of one channel side by side.
                    samples = count(inputs)
                    x = given.reshape(samples, read[name].shape[1], -1)
                    moments[name].add(*_rows(x, wanted.reshape(samples, layer.channels, -1), generator))
    finally:
        for handle in handles:
            handle.remove()
    solved = {name: own.solve() for name, own in moments.items()}
    errors = {name: error for name, (_, _, error) in solved.items()}
    errors |= {name: min(1.0, missed / max(varied, 1e-30)) for name, (missed, varied) in added.items()}
    return Maps(found, {name: (weight, bias) for name, (weight, bias, _) in solved.items()}, errors)


def _carry(layer: Layer, model: nn.Module, x: Tensor) -> Tensor:
    """The layer's input as its readers see it once it is out, after its stride and the poolings behind it."""
    if x.dim() == 4:
        x = x[:, :, :: layer.mover, :: layer.mover]
    for node in layer.path:
        x = _apply(node, model, x)
    return x


def _apply(node: fx.Node, model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    arguments = fx.node.map_arg(node.args, lambda _: x)
    keywords = fx.node.map_arg(node.kwargs, lambda _: x)
    if node.op == "call_module":
        return model.get_submodule(str(node.target))(*arguments, **keywords)
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
    return node.target(*arguments, **keywords)  # type: ignore[operator]


def _rows(given: Tensor, wanted: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows ``(R, w)``, ``(R, n)`` of ``(N, w, places)``, ``(N, n, places)`` at random places, the same for all N."""
    places = given.shape[2]
    chosen = torch.randint(places, (min(places, PLACES),), generator=generator).to(given.device)
    x, z = (channels[:, :, chosen].movedim(1, 2).flatten(0, 1) for channels in (given, wanted))
    return x, z


class _Moments:
    """First and second moments of rows x and z."""

    def __init__(self) -> None:
        self.count, self.x, self.z, self.xx, self.xz, self.zz = 0, *(torch.zeros(()).double() for _ in range(5))

    def add(self, x: Tensor, z: Tensor) -> None:
        x, z = x.double().cpu(), z.double().cpu()
        self.count += len(x)
        self.x, self.z = self.x + x.sum(0), self.z + z.sum(0)
        self.xx, self.xz, self.zz = self.xx + x.T @ x, self.xz + x.T @ z, self.zz + z.square().sum()

    def solve(self) -> tuple[Tensor, Tensor, float]:
        """(P, b, unexplained share of z's variance)."""
        x, z = self.x / self.count, self.z / self.count
        squares = self.xx / self.count - torch.outer(x, x)
        products = self.xz / self.count - torch.outer(x, z)
        varied = (self.zz / self.count - z.square().sum()).item()
        solution = ridge_solve(squares, products, RIDGE)
        left = varied - 2 * (solution * products).sum() + (solution * (squares @ solution)).sum()
        return solution.T, z - x @ solution, min(1.0, max(0.0, left.item() / max(varied, 1e-30)))


@torch.no_grad()
def take_out(model: nn.Module, cache: Maps, gone: Collection[str]) -> nn.Module:
    """A copy of ``model`` without the named layers and blocks, their maps multiplied into the layers that read them."""
    model = copy.deepcopy(model)
    found, out = cache.found, cache.found.out(gone)
    weights: dict[int, tuple[Tensor, Tensor]] = {}
    for index in range(len(found.layers)):
        behind = list(behind_which(found, index, out))
        if index not in out and behind:
            weights[index] = _folded(model, cache, index, behind)
    remove_layers(model, found, gone)
    for index, (weight, shift) in weights.items():
        layer = found.layers[index]
        module: Any = model.get_submodule(layer.name)
        module.weight.copy_(weight.reshape(module.weight.shape))
        norm: Any = model.get_submodule(layer.behind[0]) if layer.behind else None
        if module.bias is not None:
            module.bias += shift.to(module.bias)
        elif isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d) and norm.running_mean is not None:
            norm.running_mean -= shift.to(norm.running_mean)
    return place(model, next(model.parameters()).device)


def _folded(model: nn.Module, cache: Maps, index: int, behind: list[int]) -> tuple[Tensor, Tensor]:
    """(weights of a layer for its new input, constant ``(O,)`` that has to be added to its outputs)."""
    layers = cache.found.layers
    weight = model.get_submodule(layers[index].name).get_parameter("weight").detach().double()
    outputs = len(weight)
    shift = weight.new_zeros(outputs)
    for source in behind:
        own, bias = (part.to(weight.device) for part in cache.maps[layers[source].name])
        whole = weight.reshape(outputs, layers[source].channels, -1)
        shift += torch.einsum("onk,n->o", whole, bias)
        weight = torch.einsum("onk,nw->owk", whole, own)
    return weight, shift
