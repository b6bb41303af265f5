"""Weights rounded layer by layer in execution order, each layer by AdaRound (``adaround.py``).

A layer's inputs are what the quantized layers before it give, its goals the outputs of the float model, so errors are
corrected on the way (Nagel et al. 2020, equation 25). What runs behind the layer counts too (``nn/epilogue.py``): a
batch norm, a shortcut, whose error the layer corrects, and an activation.

Biases and batch norms follow at once, because the next layer reads what they give. A bias takes the value at which the
outputs' means before the activation are the float model's (the empirical bias correction of Nagel et al. 2019,
``bias_correction.py``), and the rounding is chosen for that bias. A batch norm that is not folded takes the statistics
of what it reads now.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from pfray.nn.attention import module_by_module
from pfray.nn.dense import Dense
from pfray.nn.epilogue import epilogue
from pfray.nn.fx import Walk, peak_bytes, traced_nodes
from pfray.nn.im2col import draw_positions, input_rows, output_rows
from pfray.nn.layers import sharing
from pfray.nn.modes import evaluation_mode
from pfray.quantization import activations
from pfray.quantization.adaround import Reconstruction, adaround, products
from pfray.quantization.qparams import qparams_of
from pfray.task import Task, example_input
from pfray.training.batch_norm import set_statistics

BATCH = 100
# Bytes of all activations that the two walks hold at the same time.
MEMORY = 4 * 2**30


@dataclass(frozen=True)
class Effort:
    """images, positions: training inputs, and output positions of each, that outputs are compared on. iterations: of
    AdaRound for each layer. correct: choose the biases too."""

    images: int
    positions: int
    iterations: int
    correct: bool


@torch.no_grad()
def round_in_order(
    teacher: nn.Module,
    student: nn.Module,
    names: Collection[str],
    task: Task,
    effort: Effort,
    tell: Callable[[str], None] = lambda words: None,
) -> None:
    """Round the weights ``names`` of the student again, in place.

    teacher: the float model, in evaluation mode. student: the same with quantized layers (``qparams.attach``).
    Where the activations of so many images would need more than ``MEMORY``, they are fewer, with more positions of
    each. Layers that share a weight or run more than once, and transposed convolutions, stay as they are.
    tell(words) is called before each layer. Raises Untraceable if torch.fx cannot trace the forward pass.
    """
    device = next(teacher.parameters()).device
    example = example_input(task, device)
    with module_by_module(), evaluation_mode(student):
        nodes = traced_nodes(teacher, set(names), example)
        images = max(1, min(effort.images, MEMORY // (2 * peak_bytes(nodes, teacher, example))))
        effort = replace(effort, images=images, positions=math.ceil(effort.positions * effort.images / images))
        batches = [inputs for inputs, _ in task.batches(task.train.head(images), BATCH, device)]
        walks = Walk(nodes, teacher, batches), Walk(nodes, student, batches)
        chosen, norms = _once(nodes, teacher, names)
        draws = torch.Generator().manual_seed(0)
        for node in nodes:
            if node in chosen:
                tell(f"rounding layer {chosen.index(node) + 1} of {len(chosen)}")
                _round(node, nodes, walks, effort, draws)
            elif node in norms:
                set_statistics(student.get_submodule(str(node.target)), walks[1].value(node.all_input_nodes[0]))
            for walk in walks:
                walk.value(node)
                walk.release(node)


def _once(nodes: Sequence[fx.Node], model: nn.Module, names: Collection[str]) -> tuple[list[fx.Node], list[fx.Node]]:
    """The nodes of layers to round, and of batch norms, that run once."""
    runs = Counter(node.target for node in nodes if node.op == "call_module")
    once = [(node, model.get_submodule(str(node.target))) for node in nodes if runs[node.target] == 1]
    layers = [
        node
        for node, module in once
        if node.target in names and isinstance(module, Dense) and len(sharing(model, str(node.target))) == 1
    ]
    norms = [node for node, module in once if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return layers, [node for node in norms if model.get_submodule(str(node.target)).running_var is not None]


def _round(
    node: fx.Node, nodes: Sequence[fx.Node], walks: tuple[Walk, Walk], effort: Effort, draws: torch.Generator
) -> None:
    """Set the student's weight, and its bias if that is corrected and no batch norm behind it takes its place."""
    teacher, student = walks
    name, own = str(node.target), teacher.value(node)
    layer: Any = student.model.get_submodule(name)
    exact: Any = teacher.model.get_submodule(name)
    behind = epilogue(nodes, node, teacher.model, not isinstance(layer, nn.Linear) or own[0].dim() == 2)
    scale, shift = _normalization(behind.norm, teacher.model, exact.weight)
    rows, goals, shortcuts = [], [], []
    for batch, outputs in enumerate(own):
        places = draw_positions(layer, outputs, effort.positions, draws).to(outputs.device)
        read = student.value(node.all_input_nodes[0])[batch]
        quantizer = getattr(layer, activations.NAME, None)
        rows.append(input_rows(layer, read if quantizer is None else quantizer(read), places))
        goals.append(scale * output_rows(layer, outputs, places) + shift)
        if behind.other is not None:
            goals[-1] += _added(layer, teacher.value(behind.other)[batch], outputs, places)
            shortcuts.append(_added(layer, student.value(behind.other)[batch], outputs, places))
    inputs, goal = torch.cat(rows), torch.cat(goals)
    offset = torch.cat(shortcuts) if shortcuts else torch.zeros_like(goal)
    groups, mean = getattr(layer, "groups", 1), inputs.mean(0)
    free = effort.correct and (layer.bias is not None or behind.norm is not None)
    if free:  # the bias makes up for the mean of whatever the rounding gives
        inputs, wanted = inputs - mean, goal.mean(0) - offset.mean(0)
        offset = offset + wanted
    else:
        offset = offset + shift + (0 if layer.bias is None else scale * layer.bias)
    problem = Reconstruction(inputs, offset, scale, behind.activation(goal), behind.activation, groups)
    qparams = qparams_of(dict(layer.named_buffers(recurse=False)), "weight")
    assert qparams is not None
    layer.weight.copy_(qparams.decode(adaround(exact.weight, qparams, problem, effort.iterations)))
    if free and behind.norm is None:
        layer.bias.copy_(wanted - products(mean[None], layer.weight.flatten(1), groups)[0])


def _normalization(norm_name: str | None, model: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, shift) ``(O,)`` of the batch norm behind a layer in evaluation mode; (1, 0) without one."""
    ones = torch.ones_like(weight.flatten(1)[:, 0])
    if norm_name is None:
        return ones, torch.zeros_like(ones)
    norm: Any = model.get_submodule(norm_name)
    scale = (norm.running_var + norm.eps).rsqrt() * (ones if norm.weight is None else norm.weight)
    return scale, (0.0 if norm.bias is None else norm.bias) - norm.running_mean * scale


def _added(layer: nn.Module, summand: Tensor, outputs: Tensor, places: Tensor) -> Tensor:
    """Rows ``(R, O)`` of what is added to the layer's outputs, which may have to be broadcast to their shape."""
    return output_rows(layer, summand.expand_as(outputs), places)
