"""Sparse weights in a ``.tflite`` file: constants stored as their nonzeros, unpacked by the interpreter itself.

A weight ``(O, H, W, I)`` or ``(O, I)`` becomes a tensor with TensorFlow Lite's SparsityParameters, all axes dense but
the last, which is in compressed sparse rows (segments: the first nonzero of each row; indices: the place of each in
its row), and a DENSIFY operator that writes the original tensor. On ARM, XNNPACK can run 1x1 convolutions straight from
this form; everywhere else the weights are unpacked once, when the file is opened (about 2 ms a MB), and only the file
is smaller.
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
from pfray.files import replacing

IDENTIFIER = b"TFL3"
OPERATORS = (
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
)
WEIGHT_INPUT = 1  # the weights' place among the inputs of all three
# What the second tensor, its tables and the operator cost; a generous bound.
RECORD_BYTES = 512


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


def sparsify(path_in: str | Path, path_out: str | Path, min_sparsity: float = 0.5) -> dict[str, int]:
    """Write ``path_in`` to ``path_out`` with every weight stored sparse that has at least ``min_sparsity`` (0 to 1)
    zeros and gets smaller by it; the two paths may be the same.

    Weights: float32 constants of convolutions, depthwise convolutions and fully connected layers. The outputs stay the
    same; -0.0 comes back as 0.0. Where no weight qualifies, the file is copied.
    Returns counts: ``weights`` looked at, of these ``converted``, ``bytes_before`` and ``bytes_after``.
    Raises ExportError where ``path_in`` is missing or no .tflite file, StorageError where ``path_out`` is not writable.
    """
    content = _read(path_in)
    model = _parse(content, path_in)
    converted = weights = 0
    for subgraph in model.subgraphs:
        unpacking = []
        for index in _weight_tensors(model, subgraph):
            tensor, buffer = subgraph.tensors[index], model.buffers[subgraph.tensors[index].buffer]
            values = np.frombuffer(buffer.data.tobytes(), np.float32).reshape([int(size) for size in tensor.shape])
            weights += 1
            # A weight folded with a negative batch-norm scale has -0.0 for its zeros, so they compare by value.
            nonzero = values != 0
            if 1 - nonzero.mean() < min_sparsity:
                continue
            sparsity, size = _compressed_rows(nonzero)
            if size + RECORD_BYTES >= values.nbytes:
                continue
            buffer.data = values[nonzero].view(np.uint8)
            unpacking.append(_add_densify(model, subgraph, index, sparsity))
            converted += 1
        subgraph.operators = unpacking + list(subgraph.operators)
    written = _pack(model) if converted else content
    if len(written) >= len(content):
        converted, written = 0, content
    with replacing(path_out) as temporary:
        temporary.write_bytes(written)
    sizes = {"bytes_before": len(content), "bytes_after": len(written)}
    return {"weights": weights, "converted": converted, **sizes}


def _read(path: str | Path) -> bytes:
    if not Path(path).is_file():
        raise ExportError(f"{path}: no such file. Remedy: give the path of a .tflite file")
    return Path(path).read_bytes()


def _parse(content: bytes, path: str | Path) -> Any:
    """The model as the schema's mutable objects."""
    try:
        if content[4:8] != IDENTIFIER:
            raise ValueError("no TFL3 mark")
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    except (ValueError, TypeError, struct.error, IndexError) as error:
        raise ExportError(f"{path} is damaged or no .tflite file ({error}). Remedy: repeat the export") from error
    # Models above 2 GB keep their constants behind the flatbuffer, where rewriting it would lose them.
    if any(buffer.offset > 1 for buffer in model.buffers):
        raise ExportError(f"{path} is above 2 GB, which cannot be made sparse. Remedy: ship the dense file")
    return model


def _weight_tensors(model: Any, subgraph: Any) -> list[int]:
    """Float32 constants that are weights of the known operators and nothing else, and share their buffer with none."""
    uses: Counter[int] = Counter()
    as_weight: Counter[int] = Counter()
    for operator in subgraph.operators:
        uses.update(int(i) for i in _or_empty(operator.inputs))
        if model.operatorCodes[operator.opcodeIndex].builtinCode in OPERATORS:
            as_weight[int(operator.inputs[WEIGHT_INPUT])] += 1
    buffers = Counter(tensor.buffer for graph in model.subgraphs for tensor in graph.tensors)
    ends = {int(i) for i in (*_or_empty(subgraph.inputs), *_or_empty(subgraph.outputs))}

    def qualifies(index: int) -> bool:
        tensor = subgraph.tensors[index]
        return (
            as_weight[index] == uses[index]
            and index not in ends
            and tensor.type == schema.TensorType.FLOAT32
            and tensor.sparsity is None
            and model.buffers[tensor.buffer].data is not None
            and buffers[tensor.buffer] == 1
        )

    return [index for index in sorted(as_weight) if qualifies(index)]


def _or_empty(vector: Any) -> Any:
    return () if vector is None else vector


def _compressed_rows(nonzero: np.ndarray) -> tuple[Any, int]:
    """(SparsityParameters of the last axis in compressed rows, bytes of values and tables) of a ``(..., I)`` mask."""
    rows = nonzero.reshape(-1, nonzero.shape[-1])
    segments = np.concatenate([[0], np.cumsum(rows.sum(axis=1))])
    indices = np.nonzero(rows)[1]
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder = np.arange(nonzero.ndim, dtype=np.int32)
    sparsity.dimMetadata = [_dense_axis(size) for size in nonzero.shape[:-1]]
    last = schema.DimensionMetadataT()
    last.format = schema.DimensionType.SPARSE_CSR
    last.arraySegmentsType, last.arraySegments, segment_bytes = _index_vector(segments)
    last.arrayIndicesType, last.arrayIndices, index_bytes = _index_vector(indices)
    sparsity.dimMetadata.append(last)
    return sparsity, 4 * len(indices) + segment_bytes + index_bytes


def _dense_axis(size: int) -> Any:
    axis = schema.DimensionMetadataT()
    axis.format, axis.denseSize = schema.DimensionType.DENSE, size
    return axis


def _index_vector(values: np.ndarray) -> tuple[int, Any, int]:
    """(type, vector, bytes) with the narrowest of the format's integers that holds all of ``values``."""
    largest = int(values.max(initial=0))
    kinds = schema.SparseIndexVector
    if largest < 2**8:
        kind, vector, narrow = kinds.Uint8Vector, schema.Uint8VectorT(), values.astype(np.uint8)
    elif largest < 2**16:
        kind, vector, narrow = kinds.Uint16Vector, schema.Uint16VectorT(), values.astype(np.uint16)
    else:
        kind, vector, narrow = kinds.Int32Vector, schema.Int32VectorT(), values.astype(np.int32)
    vector.values = narrow
    return kind, vector, narrow.nbytes


def _add_densify(model: Any, subgraph: Any, index: int, sparsity: Any) -> Any:
    """Give the tensor's buffer to a new sparse tensor; the operator that unpacks it into the old, now computed one."""
    dense, sparse = subgraph.tensors[index], schema.TensorT()
    sparse.name = f"sparse_{index}".encode()  # not the original's: a converter's names run to hundreds of bytes
    sparse.shape, sparse.type, sparse.buffer = dense.shape, dense.type, dense.buffer
    sparse.sparsity = sparsity
    dense.buffer = 0  # the format's empty buffer: not a constant
    subgraph.tensors.append(sparse)
    operator = schema.OperatorT()
    operator.opcodeIndex = _densify_code(model)
    operator.inputs = np.array([len(subgraph.tensors) - 1], np.int32)
    operator.outputs = np.array([index], np.int32)
    operator.builtinOptionsType = schema.BuiltinOptions.DensifyOptions
    operator.builtinOptions = schema.DensifyOptionsT()
    return operator


def _densify_code(model: Any) -> int:
    """The place of DENSIFY among the model's operator codes, added where it is missing."""
    densify = schema.BuiltinOperator.DENSIFY
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == densify:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = densify
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _pack(model: Any) -> bytes:
    model.buffers = [b if b.data is None else _AlignedBuffer(b.data) for b in model.buffers]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())
