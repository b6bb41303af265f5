"""A model with 8-bit weights and activations as LiteRT computes them: torchao's PT2E flow, litert-torch's converter.

A folded model becomes a graph in which every tensor that an int8 kernel reads or writes passes a fake quantization:
x -> s (clamp(round(x / s) + z, -128, 127) - z). Weights have z = 0 and an s for each output channel, activations one s
and one z (the int8 specification of TensorFlow Lite). The scales follow a moving average of the ranges seen in training
mode, and are fixed in evaluation mode. Gradients pass straight through.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pfray.errors import UnsupportedModel, first_line
from pfray.nn.flat import Structured
from pfray.nn.inputs import Inputs, call, take, tensors
from pfray.nn.modes import evaluating, forward, keep_memory_format
from pfray.nn.program import export_program
from pfray.quantization.pt2e.annotate import CLIPS, KNOWN, LAYERS, MOVING, PASSING, annotate, is_whole, name_of
from pfray.quantization.pt2e.decompose import forget_unused, rewrite
from pfray.quantization.pt2e.shared_observer import shared_ranges
from pfray.utils.quiet import quiet

# Operators that compute, and are reported if they stay float.
COMPUTING = {*LAYERS, "conv3d", "matmul", "addmm", "mm", "bmm"}
# Operators that move, select or clip values, and are not reported.
SMALL = {*MOVING, *PASSING, *CLIPS, "sym_size", "to", "_to_copy", "repeat", "index_select"}
# Largest difference between a model and its graph before rounding, as a share of the largest output.
MAX_DIFFERENCE = 1e-3


class Int8Model(nn.Module):
    """The graph of a model with fake quantization; called, trained and evaluated like the model.

    It has a form of its own in files, see ``pfray/export/shipped.py``. graph: from ``prepare``; its outputs are plain
    (``pfray/nn/flat.py``). outputs: the structure of the model's. quantizer: from which litert-torch writes the int8
    file. left_out: names of layers left float on request.
    """

    rounds = True
    calls: Tensor  # with ``round_after`` only

    def __init__(
        self, graph: GraphModule, outputs: Structured, quantizer: Any, left_out: frozenset[str] = frozenset()
    ) -> None:
        super().__init__()
        self.graph, self.outputs, self.quantizer, self.left_out = graph, outputs, quantizer, left_out
        self.shared = shared_ranges(graph)
        self.delay, self.activations = 0, list[Any]()
        self.eval()

    def round_after(self, delay: int) -> None:
        """Leave activations unrounded in the first ``delay`` calls in training mode, while their ranges follow.

        A buffer counts the calls, so that a resumed training continues the count.
        """
        self.delay, self.activations = delay, _of_activations(self.graph)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.delay:
            waits = self.training and int(self.calls) < self.delay
            for quantizer in self.activations:
                quantizer.fake_quant_enabled[0] = int(not waits)
            self.calls += int(self.training)
        # Fake quantization needs float32; its rounding would be lost in bf16.
        with torch.autocast(tensors((args, kwargs))[0].device.type, enabled=False):
            outputs = self.graph(*args, **kwargs)
        for each in self.shared:
            each.follow()
        return self.outputs(outputs)

    def train(self, mode: bool = True) -> Int8Model:
        """Set whether the scales follow the inputs. The graph itself was traced in evaluation mode and stays in it."""
        self.training = mode
        module: Any
        shared = {id(each.quantizer) for each in self.shared}
        for module in self.graph.modules():
            if hasattr(module, "observer_enabled") and id(module) not in shared:
                module.observer_enabled[0] = int(mode)
        for each in self.shared:
            each.watching = mode
        return self

    def converted(self, folded: bool = False) -> GraphModule:
        """The graph with integers in place of fake quantization, on the CPU, called like the model, with plain outputs.

        folded: weights are int8 tensors; litert-torch needs them float, followed by their quantization.
        """
        with quiet():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

            graph = convert_pt2e(copy.deepcopy(self.graph).cpu(), fold_quantize=folded)
        forget_unused(graph)
        _name_constants(graph)
        return graph

    def weights(self) -> dict[str, Tensor]:
        """The state dict of the converted graph: int8 weights, scales and zero points, float biases."""
        return self.converted(folded=True).state_dict()

    @contextmanager
    def unrounded(self) -> Iterator[bool]:
        """Within it the graph computes in float; gives True."""
        roundings: list[Any] = [each for each in self.graph.modules() if hasattr(each, "fake_quant_enabled")]
        before = [int(each.fake_quant_enabled[0]) for each in roundings]
        for each in roundings:
            each.fake_quant_enabled[0] = 0
        try:
            yield True
        finally:
            for each, state in zip(roundings, before, strict=True):
                each.fake_quant_enabled[0] = state

    def float_layers(self) -> list[str]:
        """Layers of the operators that compute in float, because they have no int8 kernel or were left out."""
        return [_layer(node) for node in self.graph.graph.nodes if _computes(node) and not _is_quantized(node)]

    def operators(self) -> dict[str, tuple[str, str]]:
        """(``int8`` or ``float``, reason) of operators that compute and of others in float, by layer and in order.

        Operators outside of a layer have the graph's names.
        """
        found: dict[str, tuple[str, str]] = {}
        depending = _depending(self.graph)
        for node in self.graph.graph.nodes:
            layer, operator = _layer(node), name_of(node)
            if _computes(node) and layer in self.left_out:
                kind = "float", "left out by the plan or by learner.skip"
            elif _computes(node) and _is_quantized(node):
                kind = "int8", f"{operator} in integers"
            elif node in depending and (_computes(node) or _stays_float(node)):
                among = f"{operator} among operators in float"
                kind = "float", among if operator in KNOWN else f"no int8 kernel for {operator}"
            else:
                continue
            # Several operators or calls of one layer must not hide each other.
            name = layer if layer and found.get(layer, kind) == kind else f"{layer}.{node.name}".lstrip(".")
            found[name] = kind
        return found


def prepare(
    model: nn.Module, example: Inputs, batches: Iterable[Inputs], float_layers: Iterable[str] = ()
) -> Int8Model:
    """The int8 form of a model, with ranges from ``batches``, one or more; ``model`` stays as it is.

    Batch norms are best folded before. float_layers: names of layers left float. Raises UnsupportedModel for a model
    that torch.export cannot trace.
    """
    clone, one = copy.deepcopy(model).eval(), take(example, slice(0, 1))
    try:
        with evaluating(clone):
            outputs = Structured(call(clone, one))
        with quiet():
            program = export_program(clone.cpu(), one)
    except Exception as error:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be exported for 8 bits: {first_line(error)}. Remedy: keep branches on "
            "tensor values and fixed batch sizes out of forward()"
        ) from error
    graph = program.module()
    rewrite(graph)
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        left_out = frozenset(float_layers)
        quantizer = _quantizer(left_out)
        prepared = Int8Model(prepare_qat_pt2e(graph, quantizer), outputs, quantizer, left_out)
    prepared.to(next(model.parameters()).device)
    _tell_bits(prepared.graph)
    keep_memory_format(model, prepared)
    _calibrate(prepared, batches, model)
    return prepared


def _tell_bits(graph: GraphModule) -> None:
    """Set ``weight_bits``, which counts of stored bits read, beside each weight that the files hold in 8 bits."""
    for node in graph.graph.nodes:
        if name_of(node) in LAYERS and _is_quantized(node):
            source: Any = node.args[1]
            source = source.args[0] if source.op == "call_module" else source
            owner, _, name = str(source.target).rpartition(".")
            if source.op == "get_attr":
                setattr(graph.get_submodule(owner), f"{name}_bits", 8)


@torch.no_grad()
def _calibrate(model: Int8Model, batches: Iterable[Inputs], original: nn.Module) -> None:
    """Set the ranges to the means of the batches' smallest and largest values, without rounding.

    Raises UnsupportedModel if the unrounded graph's outputs differ from ``original``'s.
    """
    modules: list[Any] = list(model.modules())
    observers = [module for module in modules if hasattr(module, "averaging_constant")]
    constants = [observer.averaging_constant for observer in observers]
    model.train()
    with model.unrounded():
        for count, inputs in enumerate(batches, 1):
            # The moving average's own constant, 1/100, would leave the range near the first batch's.
            for observer in observers:
                observer.averaging_constant = 1 / count
            outputs = forward(model, inputs)
            if count == 1:
                _check_same(original, inputs, outputs)
    for observer, constant in zip(observers, constants, strict=True):
        observer.averaging_constant = constant
    # Rounding computes the scales from the ranges.
    forward(model.eval(), inputs)


def _check_same(original: nn.Module, inputs: Inputs, outputs: Any) -> None:
    with evaluating(original):
        expected = tensors(forward(original, inputs))
    for one, other in zip(tensors(outputs), expected, strict=True):
        if (one.double() - other.double()).abs().max() > MAX_DIFFERENCE * other.double().abs().max():
            raise UnsupportedModel(
                f"{type(original).__name__} gives other outputs when it is prepared for 8 bits. Remedy: change no part "
                "of a tensor in place in forward(), such as x[:, 0].mul_(2)"
            )


def _quantizer(float_layers: frozenset[str]) -> Any:
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config

    class Quantizer(PT2EQuantizer):
        # The original looks for modules and functions of the program, and misses some in a graph of today's
        # torch.export: additions, concatenations and poolings by functions would stay float.
        def transform_for_annotation(self, graph: GraphModule) -> GraphModule:
            return graph

        def annotate(self, graph: GraphModule) -> GraphModule:
            left_out = {node for node in graph.graph.nodes if _computes(node) and _layer(node) in float_layers}
            annotate(graph, self.global_config, left_out)
            return graph

    return Quantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_qat=True))


def _layer(node: Node) -> str:
    """Name of the innermost module whose forward made the node."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0].removeprefix("L['self'].") if stack else ""


def _name_constants(graph: GraphModule) -> None:
    """Name the integers of a layer's weight, their scales and zero points after the layer."""
    parts = {"_frozen_param": "weight", "_scale_": "weight_scale", "_zero_point_": "weight_zero_point"}
    for node in graph.graph.nodes:
        part = next((part for start, part in parts.items() if str(node.target).startswith(start)), None)
        if node.op != "get_attr" or part is None:
            continue
        readers = [reader for user in node.users for reader in user.users if _computes(reader)]
        layer = _layer(readers[0]) if readers else ""
        owner = graph.get_submodule(layer) if layer and _has_module(graph, layer) else None
        if owner is not None and not hasattr(owner, part):
            value = getattr(graph, node.target)
            delattr(graph, node.target)
            owner.register_buffer(part, value)
            node.target = f"{layer}.{part}"
    graph.recompile()


def _has_module(graph: GraphModule, name: str) -> bool:
    return any(name == each for each, _ in graph.named_modules())


def _stays_float(node: Node) -> bool:
    """True for an operator that changes values and has no annotation."""
    if not str(node.target).startswith("aten.") or name_of(node) in SMALL or is_whole(node):
        return False
    return "quantization_annotation" not in node.meta


def _depending(graph: GraphModule) -> set[Node]:
    """Nodes whose values depend on the inputs."""
    found: set[Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _of_activations(graph: GraphModule) -> list[Any]:
    """Fake quantizations of values that depend on the inputs, and so are no weights."""
    depending = _depending(graph)
    called = [graph.get_submodule(str(node.target)) for node in graph.graph.nodes
              if node in depending and node.op == "call_module"]  # fmt: skip
    return [module for module in called if hasattr(module, "fake_quant_enabled")]


def _computes(node: Node) -> bool:
    return name_of(node) in COMPUTING


def _is_quantized(node: Node) -> bool:
    """True if both operands are quantized; one of them may be so for another operator's sake."""
    operands = node.args[: 1 if LAYERS.get(name_of(node), 0) is None else 2]
    return all(isinstance(each, Node) and each.op == "call_module" for each in operands)
