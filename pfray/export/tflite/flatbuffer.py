"""A ``.tflite`` file as objects that can be changed: read, found in, and written again.

A weight is a float32 constant of a convolution ``(O, H, W, I)``, a depthwise convolution ``(1, H, W, O)`` or a fully
connected layer ``(O, I)``.
"""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from pfray.errors import ExportError

IDENTIFIER = b"TFL3"
OPERATORS = (
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
)
WEIGHT_INPUT = 1  # the weights' place among the inputs of all three


class _AlignedBuffer(schema.BufferT):
    """A constant on a 16-byte boundary, which the format demands and flatbuffers' Python writer does not do."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        values = np.asarray(self.data, np.uint8)
        builder.StartVector(1, len(values), 16)
        builder.head = builder.Head() - len(values)
        builder.Bytes[builder.Head() : builder.Head() + len(values)] = values.tobytes()
        vector = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def read(path: str | Path) -> bytes:
    """Raises ExportError for a missing file."""
    if not Path(path).is_file():
        raise ExportError(f"{path}: no such file. Remedy: give the path of a .tflite file")
    return Path(path).read_bytes()


def parse(content: bytes, path: str | Path) -> Any:
    """The model as the schema's mutable objects. Raises ExportError for what is damaged or above 2 GB."""
    try:
        if content[4:8] != IDENTIFIER:
            raise ValueError("no TFL3 mark")
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    except (ValueError, TypeError, struct.error, IndexError) as error:
        raise ExportError(f"{path} is damaged or no .tflite file ({error}). Remedy: repeat the export") from error
    # Models above 2 GB keep their constants behind the flatbuffer, where rewriting it would lose them.
    if any(buffer.offset > 1 for buffer in model.buffers):
        raise ExportError(f"{path} is above 2 GB, which cannot be rewritten. Remedy: ship the dense file")
    return model


def pack(model: Any) -> bytes:
    """The inverse."""
    model.buffers = [b if b.data is None else _AlignedBuffer(b.data) for b in model.buffers]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def weight_tensors(model: Any, subgraph: Any) -> dict[int, list[Any]]:
    """The operators that read each weight, by the tensor's index: float32 constants that are weights of the known
    operators and nothing else, and share their buffer with none."""
    uses: Counter[int] = Counter()
    readers: dict[int, list[Any]] = {}
    for operator in subgraph.operators:
        uses.update(int(i) for i in _or_empty(operator.inputs))
        if model.operatorCodes[operator.opcodeIndex].builtinCode in OPERATORS:
            readers.setdefault(int(operator.inputs[WEIGHT_INPUT]), []).append(operator)
    buffers = Counter(tensor.buffer for graph in model.subgraphs for tensor in graph.tensors)
    ends = {int(i) for i in (*_or_empty(subgraph.inputs), *_or_empty(subgraph.outputs))}

    def qualifies(index: int) -> bool:
        tensor = subgraph.tensors[index]
        return (
            len(readers[index]) == uses[index]
            and index not in ends
            and tensor.type == schema.TensorType.FLOAT32
            and tensor.sparsity is None
            and model.buffers[tensor.buffer].data is not None
            and buffers[tensor.buffer] == 1
        )

    return {index: readers[index] for index in sorted(readers) if qualifies(index)}


def values_of(model: Any, tensor: Any) -> np.ndarray:
    """A float32 constant, read-only, of the tensor's shape."""
    values = np.frombuffer(model.buffers[tensor.buffer].data.tobytes(), np.float32)
    return values.reshape([int(size) for size in tensor.shape])


def unpacking(model: Any, subgraph: Any, index: int, name: str, code: int, version: int) -> tuple[Any, Any]:
    """(a new tensor with the buffer of tensor ``index``, the operator ``code`` that computes the old one from it)."""
    plain, stored = subgraph.tensors[index], schema.TensorT()
    stored.name = f"{name}_{index}".encode()  # not the original's: a converter's names run to hundreds of bytes
    stored.shape, stored.type, stored.buffer = plain.shape, plain.type, plain.buffer
    plain.buffer = 0  # the format's empty buffer: not a constant
    subgraph.tensors.append(stored)
    operator = schema.OperatorT()
    operator.opcodeIndex = operator_code(model, code, version)
    operator.inputs = np.array([len(subgraph.tensors) - 1], np.int32)
    operator.outputs = np.array([index], np.int32)
    return stored, operator


def operator_code(model: Any, builtin: int, version: int) -> int:
    """The place of an operator among the model's operator codes, added where it is missing."""
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == builtin and code.version == version:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _or_empty(vector: Any) -> Any:
    return () if vector is None else vector
