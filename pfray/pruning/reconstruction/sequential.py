"""Least squares layer by layer in execution order (He, Zhang and Sun 2017, section 3.3).

Each layer is fitted to the teacher's outputs on the inputs that the pruned layers before it produce, so that errors are
corrected on the way and do not add up. A layer whose output is added to a shortcut is fitted to the sum, so it corrects
the shortcut's error too (the same section: Y1 + Y2 - Y1').

Notation as in ``im2col.py``. Teacher and student are walked node by node through one torch.fx graph, with all
calibration batches at once, so the total cost is two forward passes and the solves for any number of layers.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pfray.errors import UnsupportedModel
from pfray.nn.attention import calling_projections, restore_whole
from pfray.nn.dense import behind_norm, can_shift, is_dense, norms_behind, shift_output
from pfray.nn.epilogue import Addition, find_addition
from pfray.nn.fx import Walk, arguments_in, peak_bytes, traced_nodes
from pfray.nn.im2col import draw_positions, input_rows, output_rows
from pfray.pruning.channels.graph import ChannelGraph
from pfray.pruning.channels.prune import Kept, kept_positions, prune
from pfray.pruning.reconstruction.covariance import BATCH, RunningCovariance
from pfray.pruning.reconstruction.least_squares import ridge_solve
from pfray.task import Task, example_input

# Keeps the weights unchanged in directions that the calibration inputs do not determine.
RIDGE = 1e-2
# Bytes of all activations that the two walks hold at the same time.
MEMORY = 4 * 2**30


@torch.no_grad()
def reconstruct_in_order(
    teacher: nn.Module,
    graph: ChannelGraph,
    kept: Kept,
    task: Task,
    images: int,
    positions: int,
) -> nn.Module:
    """A pruned copy of ``teacher`` with every dense layer behind a cut refitted; in evaluation mode, on its device.

    kept: the units that stay, by group. images, positions: training inputs, and output positions of each, that layers
    are fitted to. Where the activations of so many inputs would need more than ``MEMORY``, they are fewer, with more
    positions of each. Raises Untraceable if torch.fx cannot trace the forward pass.
    """
    # A copy in evaluation mode: the forward pass may differ in training, and tracing adds constants as attributes.
    teacher = copy.deepcopy(teacher).eval()
    with calling_projections(teacher):
        student = _reconstructed(teacher, graph, kept, task, images, positions)
    restore_whole(student)
    return student


def _reconstructed(
    teacher: nn.Module, graph: ChannelGraph, kept: Kept, task: Task, images: int, positions: int
) -> nn.Module:
    stays = kept_positions(graph, kept)
    device = next(teacher.parameters()).device
    example = example_input(task, device)
    nodes = traced_nodes(teacher, {layer for layer, _ in stays}, example)
    fitting = max(1, min(images, MEMORY // (2 * peak_bytes(nodes, teacher, example))))
    images, positions = fitting, math.ceil(positions * images / fitting)
    batches = [inputs for inputs, _ in task.batches(task.train.head(images), BATCH, device)]
    student = copy.deepcopy(teacher)
    prune(student, graph, kept)
    norms = norms_behind(teacher, example)
    own = arguments_in(student, nodes, {layer for layer, _ in stays}, example)
    walks = Walk(nodes, teacher, batches), Walk(nodes, student, batches, own)
    # Through an activation no target of a sum can be followed back.
    linear = {layer: norm for layer, norm in norms.items() if not behind_norm(teacher.get_submodule(norm))}
    generator = torch.Generator().manual_seed(0)
    to_fit = _behind_a_cut(nodes, student, stays)
    for node in nodes:
        if node in to_fit:
            outputs = stays.get((str(node.target), "out"))
            _reconstruct(node, walks, find_addition(nodes, node, linear, teacher), outputs, norms, positions, generator)
        for walk in walks:
            walk.value(node)
            walk.release(node)
    return student


def _behind_a_cut(
    nodes: Sequence[fx.Node], model: nn.Module, stays: Mapping[tuple[str, str], np.ndarray]
) -> set[fx.Node]:
    """Dense layers, run once for each input, whose inputs differ from the uncompressed model's."""
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    changed: set[fx.Node] = set()
    found = set()
    for node in nodes:
        reads_changed = any(read in changed for read in node.all_input_nodes)
        cut = node.op == "call_module" and any((node.target, side) in stays for side in ("in", "out"))
        if reads_changed or cut:
            changed.add(node)
        once = node.op == "call_module" and calls[node.target] == 1
        if reads_changed and once and is_dense(model.get_submodule(str(node.target))):
            found.add(node)
    return found


def _reconstruct(
    node: fx.Node,
    walks: tuple[Walk, Walk],
    addition: Addition | None,
    outputs: np.ndarray | None,
    norms: Mapping[str, str],
    positions: int,
    generator: torch.Generator,
) -> None:
    """Set the weights to W + (A'A + r I)^-1 A'(T - A W), with the student's rows A and the targets T, and shift the
    outputs by the constant if there is a place for one.

    outputs: the layer's outputs that stay.
    """
    teacher, student = walks
    name = str(node.target)
    layer: Any = student.model.get_submodule(name)
    moments = RunningCovariance()
    for batch, inputs in enumerate(student.value(node.all_input_nodes[0])):
        own = teacher.value(node)[batch]
        places = draw_positions(layer, own, positions, generator).to(own.device)
        target = _target(batch, walks, layer, own, places, addition, outputs)
        rows = input_rows(layer, inputs, places)
        moments.add(rows, target - F.linear(rows, layer.weight.flatten(1), layer.bias))
    squares, products = moments.covariances
    row_mean, miss_mean = moments.means
    if not bool(squares.isfinite().all() and products.isfinite().all()):
        raise UnsupportedModel(
            f"layer {name} reads or should give values that are not finite. Remedy: check the model's weights and the "
            "data's normalization"
        )
    shiftable = can_shift(student.model, name, norms)
    if not shiftable:
        squares = squares + torch.outer(row_mean, row_mean)
        products = products + torch.outer(row_mean, miss_mean)
    change = ridge_solve(squares, products, RIDGE)
    layer.weight += change.T.reshape(layer.weight.shape).to(layer.weight)
    if shiftable:
        shift_output(student.model, name, norms, miss_mean - row_mean @ change)


def _target(
    batch: int,
    walks: tuple[Walk, Walk],
    layer: nn.Module,
    own: Tensor,
    places: Tensor,
    addition: Addition | None,
    outputs: np.ndarray | None,
) -> Tensor:
    """Targets ``(R, O)`` of the layer at the ``places``."""
    teacher, student = walks
    target = output_rows(layer, own, places)
    target = target if outputs is None else target[:, outputs]
    if addition is None:
        return target
    other, cut = teacher.value(addition.other)[batch], student.value(addition.other)[batch]
    channels = layer.get_parameter("weight").shape[0]
    axis = own.dim() - 1 if isinstance(layer, nn.Linear) else 1
    if other.shape != own.shape or cut.shape != (*own.shape[:axis], channels, *own.shape[axis + 1 :]):
        return target  # broadcast
    total = output_rows(layer, teacher.value(addition.own)[batch], places) + output_rows(layer, other, places)
    mended = (total if outputs is None else total[:, outputs]) - output_rows(layer, cut, places)
    if addition.norm is None:
        return mended
    norm: Any = student.model.get_submodule(addition.norm)
    scale = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
    shift = 0.0 if norm.bias is None else norm.bias
    # A channel that the norm switches off cannot correct anything.
    return torch.where(scale.abs() > 1e-4, (mended - shift) / scale + norm.running_mean, target)
