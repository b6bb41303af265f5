"""Quantized weights in a ``.tflite`` file: integers in place of the floats that the converter wrote.

A weight of at most 8 bits becomes an int8 tensor and a DEQUANTIZE operator that restores the float tensor once, when
the file is opened; nothing else changes, on any runtime. A weight of at most 4 bits with zero among its levels becomes
an int4 tensor that the operator itself reads. LiteRT has such kernels for ungrouped convolutions and for fully
connected layers; they round their inputs to 8 bits, by the range of each input.

The converter may have multiplied an output channel by its batch norm's scale, so weights are found by their values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from pfray.export.tflite import flatbuffer
from pfray.export.tflite.flatbuffer import Weight
from pfray.export.tflite.integers import Integers, exact_int4, nearest_int8, packed_int4
from pfray.nn.layers import WeightLayer, weight_layers
from pfray.quantization.granularity import spread
from pfray.quantization.qparams import qparams_of

# The first version of each operator that older runtimes refuse, as they must: they would misread the int4 weights.
INT4_VERSIONS = {schema.BuiltinOperator.CONV_2D: 8, schema.BuiltinOperator.FULLY_CONNECTED: 12}
# The first version of DEQUANTIZE that has a scale for each channel.
DEQUANTIZE_VERSION = 5
# Largest distance of a folded channel from a multiple of the layer's own, as a share of its largest weight.
TOLERANCE = 1e-5
NOT_QUANTIZED = "not quantized"
LOST = "the file has no weight that is this layer's"
# Their operators have the weight at another input, and are skipped.
LEFT_FLOAT = nn.modules.conv._ConvTransposeNd | nn.Conv3d

# Forms that may be written, best first. int4: for kernels that round their inputs. nearest: int8 that is not exact.
Allowed = frozenset[str]
CHOICES: tuple[Allowed, ...] = (frozenset(("int4", "nearest")), frozenset(("nearest",)), frozenset())


@dataclass(frozen=True)
class Stored:
    """The form of a layer's weight in the file.

    bits: the layer's own, None if it is not quantized. type: ``int4``, ``int8`` or ``float``. reason: why, and how.
    rounds: True if the file rounds more than the model: inputs, for int4, or weights, to the nearest int8.
    """

    bits: int | None
    type: str
    reason: str
    rounds: bool = False


@dataclass(frozen=True)
class _Layer:
    """weight: ``(O, n)``, each channel in the order of the file, float64. bits: None if it is not quantized. step:
    ``(O,)``; None without even levels. lost: the reason to report if the file has no such weight."""

    weight: np.ndarray
    bits: int | None
    step: np.ndarray | None
    lost: str = LOST


def quantize(file: Any, model: nn.Module, allowed: Allowed = CHOICES[0]) -> dict[str, Stored]:
    """Store the quantized weights of ``model`` as integers in its parsed float file, in place.

    Returns how every weight layer is stored, by name; empty if no layer is quantized.
    """
    layers = _layers(model)
    if all(layer.bits is None for layer in layers.values()):
        return {}
    stored: dict[str, Stored] = {}
    for subgraph in file.subgraphs:
        unpacking: list[Any] = []
        for weight in flatbuffer.weights(file, subgraph):
            values = _by_channel(weight)
            name, scale = _match(values, layers)
            if name:
                stored[name] = _store(weight, values, layers[name], scale, allowed, unpacking)
        subgraph.operators = unpacking + list(subgraph.operators)
    for name, layer in layers.items():
        stored.setdefault(name, Stored(layer.bits, "float", NOT_QUANTIZED if layer.bits is None else layer.lost))
    return {name: stored[name] for name in layers}


def _store(
    weight: Weight, values: np.ndarray, layer: _Layer, scale: np.ndarray, allowed: Allowed, unpacking: list[Any]
) -> Stored:
    """Replace the weight, of ``values`` ``(O, n)`` that are the layer's times ``scale`` ``(O,)``.

    Operators that have to run first are appended to ``unpacking``.
    """
    if layer.bits is None:
        return Stored(None, "float", NOT_QUANTIZED)
    step = None if layer.step is None else layer.step * np.abs(scale)
    four, why = None, ""
    if step is not None and layer.bits <= 4:
        # The kernels for convolutions take a negative scale; those for fully connected layers refuse the file.
        four = exact_int4(values, step, layer.bits, negative=weight.kinds == {schema.BuiltinOperator.CONV_2D})
        if four is None:
            why = "; no int4, which needs zero among the levels (learner.symmetric=true)"
        elif not all(_has_int4_kernel(weight, reader) for reader in weight.readers):
            four, why = None, "; no int4, for which the runtime has no kernel here"
        elif "int4" not in allowed:
            four, why = None, "; no int4, with which the outputs differ too much"
    if four:
        _write(weight.file, weight.tensor, four, packed_int4(four.codes), schema.TensorType.INT4, 0)
        for reader in weight.readers:
            code = weight.file.operatorCodes[reader.opcodeIndex].builtinCode
            reader.opcodeIndex = flatbuffer.operator_code(weight.file, code, INT4_VERSIONS[code])
        return Stored(layer.bits, "int4", "exact; its inputs are rounded to 8 bits as they come", True)
    found = nearest_int8(values, step, layer.bits)
    if not found.exact and "nearest" not in allowed:
        return Stored(layer.bits, "float", "with int8's nearest levels the outputs differ too much")
    axis = _channel_axis(weight)
    codes = np.moveaxis(found.codes.reshape(_moved_shape(weight.tensor, axis)), 0, axis)
    tensor, operator = weight.compute_from("integers", schema.BuiltinOperator.DEQUANTIZE, DEQUANTIZE_VERSION)
    operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
    operator.builtinOptions = schema.DequantizeOptionsT()
    _write(weight.file, tensor, found, np.ascontiguousarray(codes).ravel().view(np.uint8), schema.TensorType.INT8, axis)
    unpacking.append(operator)
    how = "exact"
    if not found.exact:
        how = f"to the nearest, at most {100 * found.error:.1g} % of the largest weight off"
    return Stored(layer.bits, "int8", f"{how}{why}", not found.exact)


def _write(file: Any, tensor: Any, integers: Integers, data: np.ndarray, kind: int, axis: int) -> None:
    file.buffers[tensor.buffer].data = data
    tensor.type, tensor.quantization = kind, schema.QuantizationParametersT()
    tensor.quantization.scale, tensor.quantization.zeroPoint = integers.scale, integers.zero
    tensor.quantization.quantizedDimension = axis


def _has_int4_kernel(weight: Weight, reader: Any) -> bool:
    code = weight.file.operatorCodes[reader.opcodeIndex].builtinCode
    if code == schema.BuiltinOperator.CONV_2D:
        read, own = (weight.subgraph.tensors[int(i)].shape for i in reader.inputs[:2])
        return bool(read[-1] == own[-1])  # otherwise grouped, which runs but takes 20 times as long
    return code in INT4_VERSIONS


def _channel_axis(weight: Weight) -> int:
    return 3 if schema.BuiltinOperator.DEPTHWISE_CONV_2D in weight.kinds else 0


def _moved_shape(tensor: Any, axis: int) -> tuple[int, ...]:
    shape = [int(size) for size in tensor.shape]
    return (shape.pop(axis), *shape)


def _by_channel(weight: Weight) -> np.ndarray:
    """The values as ``(O, n)``, float64."""
    values = np.moveaxis(weight.values, _channel_axis(weight), 0)
    return values.reshape(len(values), -1).astype(float)


def _layers(model: nn.Module) -> dict[str, _Layer]:
    return {name: _layer(layer) for name, layer in weight_layers(model, computed=True).items()}


def _layer(layer: WeightLayer) -> _Layer:
    weight = layer.weight.detach().cpu()
    # The file has the input channels last.
    channels = weight.double().movedim(1, -1).flatten(1).numpy()
    qparams = qparams_of(dict(layer.named_buffers(recurse=False)), "weight")
    lost = "transposed and 3-d convolutions are kept in float" if isinstance(layer, LEFT_FLOAT) else LOST
    if qparams is None or qparams.step is None:
        return _Layer(channels, None if qparams is None else qparams.bits, None, lost)
    # A channel cut into several runs has several steps. The first then does not fit, which shows in the error.
    step = spread(qparams.step.cpu(), weight).expand_as(weight).flatten(1)[:, 0]
    return _Layer(channels, qparams.bits, step.double().numpy(), lost)


def _match(values: np.ndarray, layers: dict[str, _Layer]) -> tuple[str, np.ndarray]:
    """(layer whose channels these are but for a factor each, factors ``(O,)``); the name is empty if there is none."""
    for name, layer in layers.items():
        if layer.weight.shape != values.shape:
            continue
        squares = (layer.weight**2).sum(1)
        scale = (values * layer.weight).sum(1) / np.where(squares == 0, 1, squares)
        apart = np.abs(values - scale[:, None] * layer.weight).max(1)
        if (apart <= TOLERANCE * np.abs(values).max(1)).all():
            return name, scale
    return "", np.ones(len(values))
