"""Operators that are slow in integers, computed in float inside an int8 ``.tflite``.

XNNPACK has no int8 kernel for some operators that it has in float, and LiteRT's own kernels for them take 5 to 40 times
as long (65,536 values, one core with AVX-512: hard swish 260 us against 7, batch matmul 723 against 44). The
conversions around a float operator take 6 and 4 us. Its result is rounded as before; between two such operators
nothing is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from pfray.export.tflite import flatbuffer, short_names

CODES = schema.BuiltinOperator
SLOW = {
    CODES.HARD_SWISH, CODES.AVERAGE_POOL_2D, CODES.SOFTMAX, CODES.ABS, CODES.BATCH_MATMUL, CODES.SELECT,
    CODES.SELECT_V2, CODES.GREATER, CODES.GREATER_EQUAL, CODES.LESS, CODES.LESS_EQUAL, CODES.PRELU,
}  # fmt: skip
DEQUANTIZE_VERSION, QUANTIZE_VERSION = 2, 1  # int8 and float32


@dataclass(frozen=True)
class InFloat:
    """An operator that is now in float. name: such as ``HARD_SWISH``. module: whose it is; empty for the network's own.
    """

    name: str
    module: str


def compute_in_float(file: Any) -> list[InFloat]:
    """Compute the SLOW operators of a parsed file in float, in place. Returns them in order.

    The file has the converter's names still, which tell the modules.
    """
    done: list[InFloat] = []
    for subgraph in file.subgraphs:
        islands = _Islands(file, subgraph)
        for operator in subgraph.operators:
            code = file.operatorCodes[operator.opcodeIndex].builtinCode
            written = [subgraph.tensors[int(i)].name.decode() for i in operator.outputs]
            if code in SLOW and islands.add(operator):
                done.append(InFloat(flatbuffer.NAMES[code], short_names.module_of(written[0])))
            else:
                islands.keep(operator)
        subgraph.operators = islands.needed()
    return done


class _Islands:
    """The operators of a subgraph, written anew.

    floats: the float tensor of an int8 tensor, by index. added: conversions, by the tensor that they write.
    """

    def __init__(self, file: Any, subgraph: Any) -> None:
        self.file, self.subgraph = file, subgraph
        self.operators: list[Any] = []
        self.floats: dict[int, int] = {}
        self.added: dict[int, Any] = {}

    def needed(self) -> list[Any]:
        """The operators, without conversions to integers that nothing reads."""
        read = {int(i) for operator in self.operators for i in operator.inputs} | {*map(int, self.subgraph.outputs)}
        unread = {id(operator) for written, operator in self.added.items() if written not in read}
        return [operator for operator in self.operators if id(operator) not in unread]

    def keep(self, operator: Any) -> None:
        self.operators.append(operator)

    def add(self, operator: Any) -> bool:
        """True if the operator is now in float; False for one without int8 tensors or with other quantized ones."""
        ends = {int(i) for i in (*operator.inputs, *operator.outputs) if i >= 0}
        integers = {i for i in ends if self.subgraph.tensors[i].type == schema.TensorType.INT8}
        if not integers or not all(self._has_one_scale(i) for i in integers):
            return False
        operator.inputs = self._numbers(self._float(int(i)) if int(i) in integers else int(i) for i in operator.inputs)
        outputs = [int(i) for i in operator.outputs]
        operator.outputs = self._numbers(self._like(i) if i in integers else i for i in outputs)
        self.operators.append(operator)
        for before, now in zip(outputs, operator.outputs, strict=True):
            if before in integers:
                self.floats[before] = int(now)
                self._convert(CODES.QUANTIZE, QUANTIZE_VERSION, int(now), before)
        return True

    def _float(self, index: int) -> int:
        """The tensor in float, dequantized at most once."""
        if index not in self.floats:
            self.floats[index] = self._like(index)
            self._convert(CODES.DEQUANTIZE, DEQUANTIZE_VERSION, index, self.floats[index])
        return self.floats[index]

    def _like(self, index: int) -> int:
        """A new float tensor of the same shape."""
        model, tensor = self.subgraph.tensors[index], schema.TensorT()
        tensor.name, tensor.shape, tensor.shapeSignature = model.name + b"_float", model.shape, model.shapeSignature
        tensor.type, tensor.buffer = schema.TensorType.FLOAT32, 0
        self.subgraph.tensors.append(tensor)
        return len(self.subgraph.tensors) - 1

    def _convert(self, builtin: int, version: int, read: int, written: int) -> None:
        operator, name = schema.OperatorT(), "Quantize" if builtin == CODES.QUANTIZE else "Dequantize"
        operator.opcodeIndex = flatbuffer.operator_code(self.file, builtin, version)
        operator.inputs, operator.outputs = self._numbers([read]), self._numbers([written])
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{name}Options")
        operator.builtinOptions = getattr(schema, f"{name}OptionsT")()
        self.operators.append(operator)
        self.added[written] = operator

    def _has_one_scale(self, index: int) -> bool:
        quantization = self.subgraph.tensors[index].quantization
        return quantization is not None and quantization.scale is not None and len(quantization.scale) == 1

    @staticmethod
    def _numbers(values: Any) -> np.ndarray:
        return np.array(list(values), np.int32)
