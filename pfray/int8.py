"""Weights and activations of 8 bits, as LiteRT computes them: torchao's PT2E flow with litert-torch's quantizer.

A folded model becomes a graph in which every tensor that an int8 kernel reads or writes passes a fake quantization:
x -> s (clamp(round(x / s) + z, -128, 127) - z). Weights have z = 0 and an s for each output channel, activations one s
and one z (the int8 specification of TensorFlow Lite). The scales follow a moving average of the ranges seen while the
model is in training mode, and stay as they are in evaluation. Gradients pass straight through.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pfray.errors import UnsupportedModel, first_line
from pfray.quiet import quiet

# Operators that compute, as torch.export names them; of these it is worth saying that they stayed float.
COMPUTING = ("aten.conv", "aten.linear", "aten.matmul", "aten.addmm", "aten.mm.", "aten.bmm")


class Int8Model(nn.Module):
    """The graph of a model with fake quantization; called, trained and evaluated as the model was.

    graph: what ``prepare`` made. quantizer: what litert-torch has to know to write the int8 file.
    """

    def __init__(self, graph: GraphModule, quantizer: Any) -> None:
        super().__init__()
        self.graph, self.quantizer = graph, quantizer
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        # The fake quantization wants float32, and its rounding would be lost in bf16.
        with torch.autocast(inputs.device.type, enabled=False):
            return self.graph(inputs)

    def train(self, mode: bool = True) -> Int8Model:
        """Whether the scales follow what is seen. The graph itself was taken in evaluation mode and stays in it."""
        self.training = mode
        module: Any
        for module in self.graph.modules():
            if hasattr(module, "observer_enabled"):
                module.observer_enabled[0] = int(mode)
        return self

    def converted(self, folded: bool = False) -> GraphModule:
        """The graph with integers in the place of fake quantization, on the CPU.

        folded: with the weights as int8 tensors; litert-torch wants them float, with the rounding behind them.
        """
        with quiet():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

            graph = convert_pt2e(copy.deepcopy(self.graph).cpu(), fold_quantize=folded)
        # The float weights stay behind otherwise.
        used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
        for name in [*dict(graph.named_parameters()), *dict(graph.named_buffers())]:
            if name not in used:
                owner, _, own = name.rpartition(".")
                delattr(graph.get_submodule(owner), own)
        return graph

    def float_layers(self) -> list[str]:
        """The operators that compute in float, because they have no int8 kernel or were left out, by layer."""
        return [_layer(node) for node in self.graph.graph.nodes if _computes(node) and not _is_quantized(node)]


def prepare(
    model: nn.Module, example: Tensor, batches: Iterable[Tensor], float_layers: Iterable[str] = ()
) -> Int8Model:
    """The int8 form of a model without batch norm, its ranges those of ``batches``; ``model`` is left as it is.

    float_layers: names of layers left float. Raises UnsupportedModel for a model that torch.export cannot take.
    """
    two = example[:1].expand(2, *example.shape[1:]).contiguous()
    clone = copy.deepcopy(model).eval()
    try:
        program = torch.export.export(clone, (two,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be exported for 8 bits: {first_line(error)}. Remedy: keep branches on "
            "tensor values and fixed batch sizes out of forward()"
        ) from error
    graph = program.module()
    _tell_calls_apart(graph)
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        quantizer = _quantizer(frozenset(float_layers))
        prepared = Int8Model(prepare_qat_pt2e(graph, quantizer), quantizer)
    prepared.to(next(model.parameters()).device)
    _calibrate(prepared, batches)
    return prepared


@torch.no_grad()
def _calibrate(model: Int8Model, batches: Iterable[Tensor]) -> None:
    """Set the ranges to the means of the batches' smallest and largest values."""
    observers: list[Any] = [module for module in model.modules() if hasattr(module, "averaging_constant")]
    constants = [observer.averaging_constant for observer in observers]
    model.train()
    for count, inputs in enumerate(batches, 1):
        # The moving average's own 1/100 would leave the first batch's range nearly as it is.
        for observer in observers:
            observer.averaging_constant = 1 / count
        model(inputs)
    for observer, constant in zip(observers, constants, strict=True):
        observer.averaging_constant = constant
    model.eval()


def _quantizer(float_layers: frozenset[str]) -> Any:
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config

    class Quantizer(PT2EQuantizer):
        # Its patterns of a convolution and a batch norm do not match torchao's any more (litert-torch 0.10 hands a
        # function where a module is wanted), and there are no batch norms left to be matched.
        STATIC_QAT_ONLY_OPS = ()

        def _annotate_for_static_quantization_config(self, graph: GraphModule) -> GraphModule:
            # Its own filter by module name takes an underscore in a name for a dot.
            self._annotate_all_static_patterns(graph, self.global_config, lambda node: _layer(node) not in float_layers)
            return graph

    return Quantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_qat=True))


def _tell_calls_apart(graph: GraphModule) -> None:
    """Name every call of a module that is used more than once, such as one ReLU for a whole block.

    The quantizer finds a convolution with its ReLU by the modules' names, and takes all calls of one name for one
    operator, which it then cannot fuse, or fuses wrongly.
    """
    calls: Counter[tuple[str, Any]] = Counter()
    for node in graph.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if node.op == "call_function" and stack:
            key, (name, kind) = list(stack.items())[-1]
            if number := calls[name, node.target]:
                node.meta["nn_module_stack"] = {**stack, key: (f"{name}@{number}", kind)}
            calls[name, node.target] += 1


def _layer(node: Node) -> str:
    """The name of the innermost module whose forward made the node."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0].removeprefix("L['self'].").partition("@")[0] if stack else ""


def _computes(node: Node) -> bool:
    return node.op == "call_function" and str(node.target).startswith(COMPUTING)


def _is_quantized(node: Node) -> bool:
    """Whether both operands are; what is read may be so for the sake of another operator."""
    return all(isinstance(each, Node) and each.op == "call_module" for each in node.args[:2])
