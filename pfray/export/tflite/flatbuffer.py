"""A ``.tflite`` file as objects: parsed, changed in place and packed again.

A weight is a float32 constant of a convolution ``(O, H, W, I)``, a depthwise convolution ``(1, H, W, O)`` or a fully
connected layer ``(O, I)``.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
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
# Name of each builtin code.
NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
WEIGHT_INPUT = 1  # of all three


class _AlignedBuffer(schema.BufferT):
    """A constant on a 16-byte boundary, which the format demands and flatbuffers' Python writer ignores."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        values = np.asarray(self.data, np.uint8)
        builder.StartVector(1, len(values), 16)
        builder.head = builder.Head() - len(values)
        builder.Bytes[builder.Head() : builder.Head() + len(values)] = values.tobytes()
        vector = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


@dataclass(frozen=True)
class Weight:
    """One weight of a parsed file. index: its tensor's place in the subgraph. readers: the operators that read it."""

    file: Any
    subgraph: Any
    index: int
    readers: list[Any]

    @property
    def tensor(self) -> Any:
        return self.subgraph.tensors[self.index]

    @property
    def kinds(self) -> set[int]:
        """The builtin codes of the readers."""
        return {self.file.operatorCodes[reader.opcodeIndex].builtinCode for reader in self.readers}

    @property
    def values(self) -> np.ndarray:
        """The float32 constant, read-only, in the tensor's shape."""
        values = np.frombuffer(self.file.buffers[self.tensor.buffer].data.tobytes(), np.float32)
        return values.reshape([int(size) for size in self.tensor.shape])

    def compute_from(self, name: str, builtin: int, version: int) -> tuple[Any, Any]:
        """(new tensor ``name`` with the weight's buffer, operator ``builtin`` that computes the weight from it).

        Whoever calls this puts the operator first in the subgraph.
        """
        plain, stored = self.tensor, schema.TensorT()
        stored.name = f"{name}_{self.index}".encode()
        stored.shape, stored.type, stored.buffer = plain.shape, plain.type, plain.buffer
        plain.buffer = 0  # the format's empty buffer: not a constant
        self.subgraph.tensors.append(stored)
        operator = schema.OperatorT()
        operator.opcodeIndex = operator_code(self.file, builtin, version)
        operator.inputs = np.array([len(self.subgraph.tensors) - 1], np.int32)
        operator.outputs = np.array([self.index], np.int32)
        return stored, operator


def parse(content: bytes) -> Any:
    """The file as the schema's mutable objects; lists of tensors that it leaves out are empty.

    Raises ExportError for damaged content and for more than 2 GB.
    """
    try:
        if content[4:8] != IDENTIFIER:
            raise ValueError("no TFL3 mark")
        file = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    except (ValueError, TypeError, struct.error, IndexError) as error:
        raise ExportError(f"the .tflite is damaged ({error}). Remedy: repeat the export") from error
    # Files above 2 GB keep their constants behind the flatbuffer, where rewriting it would lose them.
    if any(buffer.offset > 1 for buffer in file.buffers):
        raise ExportError("the .tflite is above 2 GB, which cannot be rewritten. Remedy: export.tflite=false")
    _fill_missing_vectors(file)
    return file


def pack(file: Any) -> bytes:
    """The inverse of ``parse``."""
    file.buffers = [b if b.data is None else _AlignedBuffer(b.data) for b in file.buffers]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(file.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def weights(file: Any, subgraph: Any) -> list[Weight]:
    """The weights of the known operators that nothing else reads and that share their buffer with no other tensor."""
    uses: Counter[int] = Counter()
    readers: dict[int, list[Any]] = {}
    for operator in subgraph.operators:
        uses.update(int(i) for i in operator.inputs)
        if file.operatorCodes[operator.opcodeIndex].builtinCode in OPERATORS:
            readers.setdefault(int(operator.inputs[WEIGHT_INPUT]), []).append(operator)
    buffers = Counter(tensor.buffer for graph in file.subgraphs for tensor in graph.tensors)
    ends = {int(i) for i in (*subgraph.inputs, *subgraph.outputs)}

    def qualifies(index: int) -> bool:
        tensor = subgraph.tensors[index]
        return (
            len(readers[index]) == uses[index]
            and index not in ends
            and tensor.type == schema.TensorType.FLOAT32
            and tensor.sparsity is None
            and file.buffers[tensor.buffer].data is not None
            and buffers[tensor.buffer] == 1
        )

    return [Weight(file, subgraph, index, readers[index]) for index in sorted(readers) if qualifies(index)]


def operator_code(file: Any, builtin: int, version: int) -> int:
    """Index of an operator among the file's operator codes, appended if it is missing."""
    for index, code in enumerate(file.operatorCodes):
        if code.builtinCode == builtin and code.version == version:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, 127)  # the old field has a byte
    code.version = version
    file.operatorCodes.append(code)
    return len(file.operatorCodes) - 1


def _fill_missing_vectors(file: Any) -> None:
    """Empty vectors where the file leaves them out, as of an operator without inputs."""
    for subgraph in file.subgraphs:
        subgraph.operators = subgraph.operators or []
        for part in (subgraph, *subgraph.operators):
            for name in ("inputs", "outputs"):
                if getattr(part, name) is None:
                    setattr(part, name, np.zeros(0, np.int32))
