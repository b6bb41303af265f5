"""A model with 8-bit weights and activations as LiteRT computes them: torchao's PT2E flow, litert-torch's converter.

A folded model becomes a graph in which every tensor that an int8 kernel reads or writes passes a fake quantization:
x -> s (clamp(round(x / s) + z, -128, 127) - z). Weights have z = 0 and an s for each output channel, activations one s
and one z (the int8 specification of TensorFlow Lite). The scales follow a moving average of the ranges seen in training
mode, and are fixed in evaluation mode. Gradients pass straight through.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pfray.errors import UnsupportedModel, first_line
from pfray.nn.flat import Structured
from pfray.nn.inputs import Inputs, call, take, tensors
from pfray.nn.modes import evaluating, forward, keep_memory_format
from pfray.nn.program import export_program
from pfray.quantization.pt2e import operators
from pfray.quantization.pt2e.annotate import LAYERS, annotate, name_of
from pfray.quantization.pt2e.decompose import forget_unused, rewrite
from pfray.quantization.pt2e.shared_observer import shared_ranges
from pfray.utils.quiet import quiet

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

    def stage_modules(self) -> dict[str, nn.Module]:
        """The fake quantization of what each module of the float model gives, by the module's name, where it is in 8
        bits and the quantization is of nothing else."""
        last: dict[str, Any] = {}
        for node in self.graph.graph.nodes:
            last |= {path: node for path, _ in node.meta.get("nn_module_stack", {}).values() if path}
        calls = [node for node in self.graph.graph.nodes if node.op == "call_module"]
        used = Counter(id(self.graph.get_submodule(str(node.target))) for node in calls)
        found = {}
        for path, node in last.items():
            for module in [self.graph.get_submodule(str(user.target)) for user in node.users if user in calls][:1]:
                if used[id(module)] == 1:
                    found[path] = module
        return found

    def float_layers(self) -> list[str]:
        """Layers of the operators that compute in float, because they have no int8 kernel or were left out."""
        return operators.float_layers(self.graph)

    def operators(self) -> dict[str, tuple[str, str]]:
        """(``int8`` or ``float``, reason) by layer and in order, see ``operators.by_layer``."""
        return operators.by_layer(self.graph, self.left_out)


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
        if name_of(node) in LAYERS and operators.is_quantized(node):
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
            computing = (node for node in graph.graph.nodes if operators.computes(node))
            left_out = {node for node in computing if operators.layer_of(node) in float_layers}
            annotate(graph, self.global_config, left_out)
            return graph

    return Quantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_qat=True))


def _name_constants(graph: GraphModule) -> None:
    """Name the integers of a layer's weight, their scales and zero points after the layer."""
    parts = {"_frozen_param": "weight", "_scale_": "weight_scale", "_zero_point_": "weight_zero_point"}
    for node in graph.graph.nodes:
        part = next((part for start, part in parts.items() if str(node.target).startswith(start)), None)
        if node.op != "get_attr" or part is None:
            continue
        readers = [reader for user in node.users for reader in user.users if operators.computes(reader)]
        layer = operators.layer_of(readers[0]) if readers else ""
        owner = graph.get_submodule(layer) if layer and _has_module(graph, layer) else None
        if owner is not None and not hasattr(owner, part):
            value = getattr(graph, node.target)
            delattr(graph, node.target)
            owner.register_buffer(part, value)
            node.target = f"{layer}.{part}"
    graph.recompile()


def _has_module(graph: GraphModule, name: str) -> bool:
    return any(name == each for each, _ in graph.named_modules())


def _of_activations(graph: GraphModule) -> list[Any]:
    """Fake quantizations of values that depend on the inputs, and so are no weights."""
    with_inputs = operators.depending(graph)
    called = [graph.get_submodule(str(node.target)) for node in graph.graph.nodes
              if node in with_inputs and node.op == "call_module"]  # fmt: skip
    return [module for module in called if hasattr(module, "fake_quant_enabled")]
