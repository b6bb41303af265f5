"""Annotation of an exported graph: the operators that LiteRT computes in integers, and how values are quantized.

The int8 specification of TensorFlow Lite has four kinds of operators: layers, whose weights have a scale for each
output channel; operators whose output has a range of its own; operators that only move or select values, whose inputs
and output share one scale; and operators whose output has a fixed range.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

# Axis of the weight's output channels, by layer. None: LiteRT's converter quantizes the weights of transposed
# convolutions itself.
LAYERS = {"conv1d": 0, "conv2d": 0, "linear": 0, "conv_transpose2d": None}
OWN_RANGE = {
    "add", "sub", "mul", "matmul", "bmm", "relu", "relu6", "leaky_relu", "hardswish", "gelu", "abs", "mean", "sum"
}  # fmt: skip
MOVING = {
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "mT", "squeeze",
    "unsqueeze", "slice", "select", "expand", "expand_as", "pad", "constant_pad_nd", "contiguous", "clone", "dropout",
    "alias", "detach", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "index_select", "max_pool1d",
    "max_pool2d", "clamp", "clamp_min", "clamp_max", "hardtanh",
}  # fmt: skip
ONE_SCALE = MOVING | {
    "cat", "concat", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "upsample_nearest2d",
    "upsample_bilinear2d", "amax", "maximum", "minimum",
}  # fmt: skip
# Operators with a fixed range, with its scale and zero point.
ONE_RANGE = {"sigmoid": (1 / 256, -128), "softmax": (1 / 256, -128), "tanh": (1 / 128, 0)}
# Operators with several outputs, without annotations of their own; integers pass through them.
PASSING = {"split", "split_with_sizes", "chunk", "getitem"}
CLIPS = {"relu", "relu6"}
JOINS = {"cat", "concat"}
# Marks a batch norm that was rewritten as a convolution: in integers only if its input is.
NORM = "pfray_norm"
KNOWN = {*LAYERS, *OWN_RANGE, *ONE_SCALE, *ONE_RANGE, *PASSING}


def name_of(node: Node) -> str:
    """``conv2d`` for aten.conv2d.default and for the in-place form; empty for nodes that are no operators."""
    if node.op != "call_function":
        return ""
    if node.target is operator.getitem:
        return "getitem"
    name = str(node.target).removeprefix("aten.").partition(".")[0].removesuffix("_")
    return "relu6" if name == "hardtanh" and node.args[1:] == (0.0, 6.0) else name


def annotate(graph: GraphModule, config: Any, left_out: set[Node]) -> None:
    """Set PT2E's annotation, how inputs and outputs are quantized, on every operator in integers.

    config: litert-torch's specifications of weights and activations. left_out: layers that stay float.
    """
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, SharedQuantizationSpec

    own = config.output_activation
    of_one_range = set(_of_one_range(graph.graph))
    chosen = _in_integers(graph.graph, left_out, of_one_range)
    of_one_range &= chosen
    for node in graph.graph.nodes:
        name, inputs = name_of(node), _inputs(node)
        if not name or is_whole(node) or node not in chosen or name in PASSING:
            continue
        # Values of a fixed range cannot be read in another range.
        as_given = {each: SharedQuantizationSpec(each) for each in inputs if each in of_one_range}
        reads: dict[Node, Any] = dict.fromkeys(inputs, own) | as_given
        gives: Any = own
        if (axis := LAYERS.get(name)) is not None:
            reads[node.all_input_nodes[1]] = dataclasses.replace(config.weight, ch_axis=axis)
        elif name in ONE_RANGE:
            gives = _one_range(*ONE_RANGE[name])
        elif name in ONE_SCALE and not _gives_a_mean(node):
            gives = SharedQuantizationSpec((inputs[0], node))
            reads |= dict.fromkeys(inputs[1:], gives)
        if _clip_behind(node):
            gives = None
        elif name in CLIPS and _clip_behind(inputs[0]):
            reads = {}
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=reads, output_qspec=gives, _annotated=True
        )


def _of_one_range(graph: Graph) -> dict[Node, tuple[float, int]]:
    """Nodes with a fixed range: operators that have one, and operators that only move and join values of one."""
    found: dict[Node, tuple[float, int]] = {}
    for node in graph.nodes:
        ranges = {found.get(each) for each in _inputs(node)}
        if name_of(node) in ONE_RANGE:
            found[node] = ONE_RANGE[name_of(node)]
        elif name_of(node) in ONE_SCALE and not _gives_a_mean(node) and len(ranges) == 1 and (same := ranges.pop()):
            found[node] = same
    return found


def _in_integers(graph: Graph, left_out: set[Node], of_one_range: set[Node]) -> set[Node]:
    """Nodes computed in integers: layers, and operators between integers.

    An operator is in integers if all its readers are and at least half of its inputs are. Elsewhere, also in front of
    the first layer, conversions would cost more time than they save, and precision. Readers that are left-out layers do
    not count, so one left-out layer does not make everything before it float. Operators that join values of a fixed
    range with others, which cannot share one scale, are left to LiteRT's converter. Values of a fixed range need one
    reader in integers only, because otherwise the converter would give them another range. Concatenations at the very
    end stay float, so that parts of an output, such as boxes and probabilities, need not share one scale.
    """
    layers = {node for node in graph.nodes if _is_layer(node)} - left_out
    fixed = layers | {user for node in layers if _clip_behind(node) for user in node.users}
    fixed |= {node for node in graph.nodes if node.op not in ("call_function", "placeholder") or is_whole(node)}
    known = KNOWN - {*LAYERS}
    found = fixed | {node for node in graph.nodes if name_of(node) in known or node.meta.get(NORM)}
    found -= _joining_outputs(graph)
    joined = {node for node in found - of_one_range if name_of(node) in ONE_SCALE and of_one_range & {*_inputs(node)}}
    found -= joined

    def alone(node: Node) -> bool:
        read = [each for each in _inputs(node) if each.op != "get_attr"]
        if node in of_one_range:
            given = not node.users.keys().isdisjoint(found | joined)
        else:
            given = found.issuperset(node.users.keys() - left_out - joined)
        return not given or 2 * len(found.intersection(read)) < len(read)

    while floating := {node for node in found - fixed if alone(node)}:
        found -= floating
    return found


def _joining_outputs(graph: Graph) -> set[Node]:
    """Concatenations from which values only move to the outputs, and the operators that move them."""
    ends: set[Node] = set()
    for node in reversed(graph.nodes):
        ends_here = node.users and all(user.op == "output" or user in ends for user in node.users)
        if ends_here and name_of(node) in MOVING | JOINS:
            ends.add(node)

    def joins(node: Node) -> bool:
        return name_of(node) in JOINS or any(each in ends and joins(each) for each in _inputs(node))

    return {node for node in ends if joins(node)}


def _is_layer(node: Node) -> bool:
    return name_of(node) in LAYERS and node.all_input_nodes[1].op == "get_attr" and not node.meta.get(NORM)


def _inputs(node: Node) -> list[Node]:
    """Tensors that an operator computes with, each once, without a layer's weight and bias."""
    tensors = [each for each in node.all_input_nodes if not is_whole(each)]
    return tensors[:1] if name_of(node) in {*LAYERS, *MOVING} else tensors


def is_whole(node: Node) -> bool:
    """True for sizes, indices and masks, which have no scale."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    return isinstance(value, torch.SymInt | torch.SymBool | int)


def _one_range(scale: float, zero_point: int) -> Any:
    from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec

    return FixedQParamsQuantizationSpec(
        torch.int8, scale, zero_point, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine
    )


def _gives_a_mean(node: Node) -> bool:
    """True for a pooling to one mean a channel, for which LiteRT has an operator with a range of its own."""
    return name_of(node) == "adaptive_avg_pool2d" and set(torch.as_tensor(node.args[1]).flatten().tolist()) == {1}


def _clip_behind(node: Node) -> bool:
    """True if the only reader is a clip that the kernel includes."""
    users = list(node.users)
    return name_of(node) in {*LAYERS, "add", "sub", "mul"} and len(users) == 1 and name_of(users[0]) in CLIPS
