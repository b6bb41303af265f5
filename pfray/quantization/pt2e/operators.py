"""Operators of an annotated graph, by layer: those that compute in integers and those in float."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from pfray.quantization.pt2e.annotate import CLIPS, KNOWN, LAYERS, MOVING, PASSING, is_whole, name_of

# Operators that compute, and are reported if they stay float.
COMPUTING = {*LAYERS, "conv3d", "matmul", "addmm", "mm", "bmm"}
# Operators that move, select or clip values, and are not reported.
SMALL = {*MOVING, *PASSING, *CLIPS, "sym_size", "to", "_to_copy", "repeat"}


def by_layer(graph: GraphModule, left_out: frozenset[str]) -> dict[str, tuple[str, str]]:
    """(``int8`` or ``float``, reason) of operators that compute and of others in float, by layer and in order.

    Operators outside of a layer have the graph's names. left_out: names of layers left float on request.
    """
    found: dict[str, tuple[str, str]] = {}
    with_inputs = depending(graph)
    for node in graph.graph.nodes:
        layer, operator = layer_of(node), name_of(node)
        if computes(node) and layer in left_out:
            kind = "float", "left out by the plan or by learner.skip"
        elif computes(node) and is_quantized(node):
            kind = "int8", f"{operator} in integers"
        elif node in with_inputs and (computes(node) or _stays_float(node)):
            among = f"{operator} among operators in float"
            kind = "float", among if operator in KNOWN else f"no int8 kernel for {operator}"
        else:
            continue
        # Several operators or calls of one layer must not hide each other.
        name = layer if layer and found.get(layer, kind) == kind else f"{layer}.{node.name}".lstrip(".")
        found[name] = kind
    return found


def float_layers(graph: GraphModule) -> list[str]:
    """Layers of the operators that compute in float, because they have no int8 kernel or were left out."""
    return [layer_of(node) for node in graph.graph.nodes if computes(node) and not is_quantized(node)]


def layer_of(node: Node) -> str:
    """Name of the innermost module whose forward made the node."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0].removeprefix("L['self'].") if stack else ""


def computes(node: Node) -> bool:
    """True for a layer's operator and for products of matrices."""
    return name_of(node) in COMPUTING


def is_quantized(node: Node) -> bool:
    """True if both operands are quantized; one of them may be so for another operator's sake."""
    operands = node.args[: 1 if LAYERS.get(name_of(node), 0) is None else 2]
    return all(isinstance(each, Node) and each.op == "call_module" for each in operands)


def depending(graph: GraphModule) -> set[Node]:
    """Nodes whose values depend on the inputs."""
    found: set[Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _stays_float(node: Node) -> bool:
    """True for an operator that changes values and has no annotation."""
    if not str(node.target).startswith("aten.") or name_of(node) in SMALL or is_whole(node):
        return False
    return "quantization_annotation" not in node.meta
