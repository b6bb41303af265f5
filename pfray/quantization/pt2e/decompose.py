"""Operators without an integer kernel in LiteRT, rewritten by operators that have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from pfray.quantization.pt2e.annotate import NORM, is_whole

ATEN = torch.ops.aten


def rewrite(graph: GraphModule) -> None:
    """Rewrite an exported graph in place; its outputs stay the same but for rounding."""
    _read_results(graph)
    for node in graph.graph.find_nodes(op="call_function", target=ATEN._assert_tensor_metadata.default):
        graph.graph.erase_node(node)
    # Checks of the inputs against the example, which would be readers of inputs that are constants.
    for node in graph.graph.find_nodes(op="call_module", target="_guards_fn"):
        graph.graph.erase_node(node)
        delattr(graph, "_guards_fn")
    for node in list(graph.graph.nodes):
        write = WRITTEN_AS.get(node.target) if node.op == "call_function" else None
        if write is None or node.kwargs or is_whole(node):
            continue
        with graph.graph.inserting_before(node):
            other = write(graph, node)
        if other is not None:
            node.replace_all_uses_with(other)
        if not node.users:
            graph.graph.erase_node(node)
    forget_unused(graph)
    for node in graph.graph.find_nodes(op="get_attr"):
        if isinstance(value := _attribute(graph, node), Tensor):
            node.meta["val"] = value.detach().to("meta")
    graph.recompile()


def forget_unused(graph: GraphModule) -> None:
    """Remove parameters and buffers that nothing reads any more."""
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.graph.erase_node(node)
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in [*graph.named_parameters(), *graph.named_buffers()]:
        if name not in used:
            owner, _, own = name.rpartition(".")
            delattr(graph.get_submodule(owner), own)


def _read_results(graph: GraphModule) -> None:
    """Let readers of a tensor that an operator has changed in place read the operator's output.

    A rounding, and so a copy, will come between the two.
    """
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    for node in order:
        if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
            changed: Any = node.args[0]
            for reader in [each for each in changed.users if order[each] > order[node]]:
                reader.replace_input_with(changed, node)


def _with_tensor(graph: GraphModule, node: Node) -> Node | None:
    """Numbers in the call as tensors, because numbers have no scale."""
    arguments: list[Any] = list(node.args)
    if all(isinstance(each, Node) or _is_tiny(each) for each in arguments):
        return None
    tensors = [each if isinstance(each, Node) else _number(graph, node, each) for each in arguments]
    return _call(node, node.target, *tensors)


def _from_number(graph: GraphModule, node: Node) -> Node | None:
    """number - x as a subtraction of tensors."""
    if len(node.args) > 2 or _is_tiny(node.args[1]):
        return None
    return _call(node, ATEN.sub.Tensor, _number(graph, node, node.args[1]), node.args[0])


def _quotient(graph: GraphModule, node: Node) -> Node | None:
    """x / number as x times 1 / number."""
    divisor: Any = node.args[1]
    if isinstance(divisor, Node) or _is_tiny(1 / divisor):
        return None
    return _call(node, ATEN.mul.Tensor, node.args[0], _number(graph, node, 1 / divisor))


def _is_tiny(number: Any) -> bool:
    """True for a number that torchao's smallest scale of a tensor, 2^-12, cannot resolve."""
    return 0 < abs(number) < 2**-5


def _square(graph: GraphModule, node: Node) -> Node | None:
    return _call(node, ATEN.mul.Tensor, node.args[0], node.args[0]) if node.args[1:] in ((), (2,)) else None


def _silu(graph: GraphModule, node: Node) -> Node:
    return _call(node, ATEN.mul.Tensor, node.args[0], _call(node, ATEN.sigmoid.default, node.args[0]))


def _hardsigmoid(graph: GraphModule, node: Node) -> Node:
    raised = _call(node, ATEN.add.Tensor, node.args[0], _number(graph, node, 3))
    clipped = _call(node, ATEN.hardtanh.default, raised, 0.0, 6.0)
    return _call(node, ATEN.mul.Tensor, clipped, _number(graph, node, 1 / 6))


def _prelu(graph: GraphModule, node: Node) -> Node | None:
    """relu(x) plus the slope of the channel times x - relu(x)."""
    inputs: Any
    weight: Any
    inputs, weight = node.args
    if weight.op != "get_attr":
        return None
    slopes = _value(graph, weight).view(-1, *[1] * (inputs.meta["val"].dim() - 2))
    slope = _constant(graph, nn.Parameter(slopes.clone(), requires_grad=_learns(graph, weight)))
    above = _call(node, ATEN.relu.default, inputs)
    below = _call(node, ATEN.mul.Tensor, _call(node, ATEN.sub.Tensor, inputs, above), slope)
    return _call(node, ATEN.add.Tensor, above, below)


def _cast(graph: GraphModule, node: Node) -> Node | None:
    """x for a cast to the type that x has."""
    inputs: Any = node.args[0]
    return inputs if node.meta["val"].dtype == inputs.meta["val"].dtype else None


def _parts(graph: GraphModule, node: Node) -> None:
    """``unbind`` as a ``select`` for each part, because the converter mixes the parts up."""
    inputs, dimension = node.args[0], node.args[1] if len(node.args) > 1 else 0
    for part in list(node.users):
        part.replace_all_uses_with(_call(part, ATEN.select.int, inputs, dimension, part.args[1]))
        graph.graph.erase_node(part)


def _stack(graph: GraphModule, node: Node) -> Node:
    parts: Any = node.args[0]
    dimension = node.args[1] if len(node.args) > 1 else 0
    parts = [_call(node, ATEN.unsqueeze.default, part, dimension) for part in parts]
    return _call(node, ATEN.cat.default, parts, dimension)


def _join_constant(graph: GraphModule, node: Node) -> Node | None:
    """A concatenation with a constant, such as a class token, as the sum of the parts, each padded by zeros: the
    converter would round the constant in the scale of the values beside it, however small it is."""
    parts: Any = node.args[0]
    dimension: Any = node.args[1] if len(node.args) > 1 else 0
    constant = [_is_constant(part) for part in parts]
    sizes = [part.meta["val"].shape[dimension] for part in parts]
    if all(constant) or not any(constant) or not all(isinstance(size, int) for size in sizes):
        return None
    axes = node.meta["val"].dim()
    padded = []
    for index, part in enumerate(parts):
        around = [sum(sizes[:index]), sum(sizes[index + 1 :])]
        pads = [0, 0] * (axes - 1 - dimension % axes) + around
        padded.append(_call(node, ATEN.constant_pad_nd.default, part, pads, 0.0))
    total = padded[0]
    for part in padded[1:]:
        total = _call(node, ATEN.add.Tensor, total, part)
    return total


def _is_constant(node: Node) -> bool:
    moves = node.target in (ATEN.expand.default, ATEN.unsqueeze.default, ATEN.view.default)
    return node.op == "get_attr" or (moves and _is_constant(cast(Node, node.args[0])))


def _batch_norm(graph: GraphModule, node: Node) -> Node | None:
    """A batch norm that could not be folded, as a depthwise 1x1 convolution; on features ``(N, C)`` and in 3-d as a
    product and a sum.

    None may be left: torchao then traces a hundred patterns of convolutions with batch norms, which takes minutes.
    """
    inputs, weight, bias, mean, variance, *_, epsilon, _ = cast(tuple[Any, ...], node.args)
    dimensions = inputs.meta["val"].dim() - 2
    if mean is None or variance is None:
        return None
    scale = (_value(graph, variance).double() + epsilon).rsqrt()
    scale = scale if weight is None else scale * _value(graph, weight).double()
    shift = -_value(graph, mean).double() * scale
    shift = shift if bias is None else shift + _value(graph, bias).double()
    convolves = dimensions in (1, 2)
    ones, zeros = [1] * dimensions, [0] * dimensions
    numbers = nn.Parameter(scale.float().view(-1, *([1] * convolves), *ones), requires_grad=_learns(graph, weight))
    shifts = nn.Parameter(
        shift.float() if convolves else shift.float().view(-1, *ones), requires_grad=_learns(graph, bias)
    )
    if numbers.requires_grad:
        # A step r on the norm's weight is a step r / (v + e) on these numbers.
        rate = (_value(graph, variance).float() + epsilon).reciprocal().view_as(numbers)
        numbers.register_hook(lambda gradient: gradient * rate)
    parameters = [_constant(graph, each) for each in (numbers, shifts)]
    if not convolves:
        return _call(node, ATEN.add.Tensor, _call(node, ATEN.mul.Tensor, inputs, parameters[0]), parameters[1])
    convolution = (ATEN.conv1d if dimensions == 1 else ATEN.conv2d).default
    new = _call(node, convolution, inputs, *parameters, ones, zeros, ones, len(scale))
    new.meta[NORM] = True
    return new


WRITTEN_AS: dict[Any, Callable[[GraphModule, Node], Node | None]] = {
    **dict.fromkeys([ATEN.add.Tensor, ATEN.add_.Tensor, ATEN.sub.Tensor, ATEN.sub_.Tensor], _with_tensor),
    **dict.fromkeys([ATEN.mul.Tensor, ATEN.mul_.Tensor], _with_tensor),
    **dict.fromkeys([ATEN.div.Tensor, ATEN.div_.Tensor], _quotient),
    **dict.fromkeys([ATEN.silu.default, ATEN.silu_.default], _silu),
    **dict.fromkeys([ATEN.hardsigmoid.default, ATEN.hardsigmoid_.default], _hardsigmoid),
    ATEN.prelu.default: _prelu,
    ATEN.rsub.Scalar: _from_number,
    ATEN.pow.Tensor_Scalar: _square,
    ATEN.square.default: _square,
    ATEN.batch_norm.default: _batch_norm,
    ATEN.to.dtype: _cast,
    ATEN.unbind.int: _parts,
    ATEN.stack.default: _stack,
    ATEN.cat.default: _join_constant,
}


def _call(node: Node, target: Any, *arguments: Any) -> Node:
    """A call in front of ``node``, in the same layer."""
    new = node.graph.call_function(target, arguments)
    new.meta = {key: node.meta[key] for key in ("nn_module_stack", "val") if key in node.meta}
    return new


def _number(graph: GraphModule, node: Node, value: Any) -> Node:
    """A tensor of one number, on the device and with as many axes as the output of ``node``, so that the file needs no
    reshaping."""
    like = node.meta["val"]
    return _constant(graph, torch.full((1,) * like.dim(), float(value), device=like.device))


def _constant(graph: GraphModule, value: Tensor) -> Node:
    taken = {name for name, _ in [*graph.named_parameters(recurse=False), *graph.named_buffers(recurse=False)]}
    name = next(name for i in range(len(taken) + 1) if (name := f"_constant_{i}") not in taken)
    if isinstance(value, nn.Parameter):
        graph.register_parameter(name, value)
    else:
        graph.register_buffer(name, value)
    return graph.graph.get_attr(name)


def _value(graph: GraphModule, node: Any) -> Tensor:
    return _attribute(graph, node).detach()


def _learns(graph: GraphModule, node: Any) -> bool:
    """True for a parameter that a training moves; a norm without one has nothing to learn."""
    return node is not None and bool(_attribute(graph, node).requires_grad)


def _attribute(graph: GraphModule, node: Any) -> Any:
    owner, _, name = str(node.target).rpartition(".")
    return getattr(graph.get_submodule(owner), name)
