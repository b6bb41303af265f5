"""Sparse weights in a ``.tflite`` file: constants stored as their nonzeros, unpacked by the interpreter itself.

A weight ``(O, H, W, I)`` or ``(O, I)`` becomes a tensor with TensorFlow Lite's SparsityParameters and a DENSIFY
operator that writes the original tensor. All axes are dense but the last, which is in compressed sparse rows (segments:
the first nonzero of each row; indices: each one's place in its row). On ARM, XNNPACK can run 1x1 convolutions straight
from this form; everywhere else the weights are unpacked once, when the file is opened (about 2 ms a MB), and only the
file is smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from pfray.export.tflite import flatbuffer

# Upper bound of the bytes of the second tensor, its tables and the operator.
RECORD_BYTES = 512


def sparsify(file: Any, min_sparsity: float = 0.5) -> int:
    """Store weights of a parsed file sparse, in place: those with at least ``min_sparsity`` (0 to 1) zeros that get
    smaller by it. Returns how many.

    Weights: float32 constants of convolutions, depthwise convolutions and fully connected layers. The outputs stay the
    same; -0.0 comes back as 0.0.
    """
    converted = 0
    for subgraph in file.subgraphs:
        unpacking = []
        for weight in flatbuffer.weights(file, subgraph):
            values = weight.values
            # A weight folded with a negative batch-norm scale has -0.0 for its zeros, so they compare by value.
            nonzero = values != 0
            if 1 - nonzero.mean() < min_sparsity:
                continue
            sparsity, size = _compressed_rows(nonzero)
            if size + RECORD_BYTES >= values.nbytes:
                continue
            file.buffers[weight.tensor.buffer].data = values[nonzero].view(np.uint8)
            unpacking.append(_add_densify(weight, sparsity))
        subgraph.operators = unpacking + list(subgraph.operators)
        converted += len(unpacking)
    return converted


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


def _add_densify(weight: flatbuffer.Weight, sparsity: Any) -> Any:
    """The operator that unpacks the weight from a new sparse tensor."""
    sparse, operator = weight.compute_from("sparse", schema.BuiltinOperator.DENSIFY, version=1)
    sparse.sparsity = sparsity
    operator.builtinOptionsType = schema.BuiltinOptions.DensifyOptions
    operator.builtinOptions = schema.DensifyOptionsT()
    return operator
