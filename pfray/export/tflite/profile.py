"""Milliseconds of each operator of a ``.tflite`` file, each timed in a file of its own.

The runtime's own profiler cannot be called from Python, and it shows one number for all that XNNPACK computes.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from pfray.export.tflite import flatbuffer
from pfray.utils.file_values import drawn
from pfray.utils.quiet import mute_stderr

# An operator runs for so many seconds, and so many times at least.
SECONDS, CALLS = 0.004, 10
CODES = schema.BuiltinOperator
# Operators into which XNNPACK takes a padding in front of them, which by itself would take as long as a convolution.
PADS_ITSELF = {CODES.CONV_2D, CODES.DEPTHWISE_CONV_2D}


def slow_operators(path: str | Path, most: int = 4) -> list[dict[str, Any]]:
    """The kinds of operators that take most of the file's time, the largest first, as JSON values: ``operator``, such
    as ``HARD_SWISH int8``, how many (``count``), and their ``share`` of the sum over all operators.
    """
    times: dict[str, list[float]] = {}
    for name, kind, milliseconds in operator_times(path):
        times.setdefault(f"{name} {kind}", []).append(milliseconds)
    whole = sum(map(sum, times.values()))
    found: list[dict[str, Any]] = [
        {"operator": name, "count": len(own), "share": sum(own) / whole} for name, own in times.items()
    ]
    return sorted(found, key=lambda each: each["share"], reverse=True)[:most]


def operator_times(path: str | Path) -> list[tuple[str, str, float]]:
    """(name, ``int8`` or ``float``, milliseconds of one call) of each operator that depends on the inputs, in order.

    Operators that cannot run by themselves are left out.
    """
    file = flatbuffer.parse(Path(path).read_bytes())
    subgraph = file.subgraphs[0]
    readers: dict[int, list[int]] = {}
    for operator in subgraph.operators:
        for i in operator.inputs:
            readers.setdefault(int(i), []).append(file.operatorCodes[operator.opcodeIndex].builtinCode)
    constant = {i for i, tensor in enumerate(subgraph.tensors) if file.buffers[tensor.buffer].data is not None}
    found = []
    for operator in subgraph.operators:
        reads = [int(i) for i in operator.inputs if i >= 0 and int(i) not in constant]
        if not reads:
            constant.update(int(i) for i in operator.outputs)  # weights that are unpacked once
            continue
        code = file.operatorCodes[operator.opcodeIndex].builtinCode
        if code == CODES.PAD and set(readers.get(int(operator.outputs[0]), [])) <= PADS_ITSELF:
            continue
        integers = subgraph.tensors[int(operator.outputs[0])].type == schema.TensorType.INT8
        milliseconds = _time(_alone(file, subgraph, operator, reads))
        if milliseconds is not None:
            kind = "int8" if integers else "float"
            found.append((flatbuffer.NAMES.get(code, "CUSTOM"), kind, milliseconds))
    return found


def _alone(file: Any, subgraph: Any, operator: Any, reads: list[int]) -> bytes:
    """A file with the one operator."""
    used = sorted({int(i) for i in (*operator.inputs, *operator.outputs) if i >= 0})
    place = {old: new for new, old in enumerate(used)}
    one, graph, single = copy.copy(file), schema.SubGraphT(), copy.copy(operator)
    tensors, buffers = [copy.copy(subgraph.tensors[old]) for old in used], [schema.BufferT()]
    for tensor in tensors:
        data = file.buffers[tensor.buffer].data
        tensor.buffer = 0
        if data is not None:
            tensor.buffer = len(buffers)
            buffers.append(copy.copy(file.buffers[0]))
            buffers[-1].data = data
    single.inputs = np.array([place.get(int(i), -1) for i in operator.inputs], np.int32)
    single.outputs = np.array([place[int(i)] for i in operator.outputs], np.int32)
    graph.tensors, graph.operators = tensors, [single]
    graph.inputs = np.array(sorted({place[i] for i in reads}), np.int32)
    graph.outputs = single.outputs
    one.subgraphs, one.buffers, one.signatureDefs, one.metadata = [graph], buffers, [], []
    return flatbuffer.pack(one)


def _time(content: bytes) -> float | None:
    """Milliseconds of one call; None if the file does not run."""
    try:
        with mute_stderr():
            interpreter = Interpreter(model_content=content, num_threads=1)
            interpreter.allocate_tensors()
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], drawn(detail))
        interpreter.invoke()
    except (ValueError, RuntimeError):
        return None
    took, deadline = list[float](), time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < deadline or len(took) < CALLS:
        interpreter.invoke()
        took.append(time.perf_counter() - start)
    return 1e3 * min(took)  # other processes only ever add to it
