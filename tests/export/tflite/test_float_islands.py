"""Operators that are slow in integers: computed in float, with the values rounded where they were."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn
from torch.nn import functional as F

from pfray.export.tflite import convert, flatbuffer, float_islands
from pfray.export.tflite.float_islands import InFloat
from pfray.measure import interpreter
from pfray.quantization.pt2e import int8_model

INPUTS = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(operation):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.last(operation(self.first(x))).flatten(1)

    return Net().eval()


def operators(content: bytes) -> Counter[str]:
    file = flatbuffer.parse(content)
    return Counter(
        flatbuffer.NAMES[file.operatorCodes[each.opcodeIndex].builtinCode] for each in file.subgraphs[0].operators
    )


@pytest.mark.parametrize(("name", "operation"), [
    ("HARD_SWISH", F.hardswish),
    ("AVERAGE_POOL_2D", lambda x: F.avg_pool2d(x, 2)),
    ("SOFTMAX", lambda x: x.softmax(1)),
    ("ABS", torch.abs),
    ("BATCH_MATMUL", lambda x: x @ x),
])  # fmt: skip
def test_an_operator_in_float_gives_what_it_gave_in_integers_or_the_next_step(name, operation, tmp_path):
    prepared = int8_model.prepare(network(operation), INPUTS, [INPUTS])
    before = convert.convert(prepared, INPUTS)
    file = flatbuffer.parse(before)
    assert float_islands.compute_in_float(file) == [InFloat(name, "")]
    paths = tmp_path / "before.tflite", tmp_path / "after.tflite"
    for path, content in zip(paths, (before, flatbuffer.pack(file)), strict=True):
        path.write_bytes(content)
    added = operators(paths[1].read_bytes()) - operators(before)
    assert set(added) == {"QUANTIZE", "DEQUANTIZE"}
    (one,), (other,) = (interpreter.predict(path, INPUTS.numpy()) for path in paths)
    assert np.abs(one - other).max() < 0.02 * np.abs(one).max()


def test_between_two_such_operators_nothing_is_converted(tmp_path):
    prepared = int8_model.prepare(network(lambda x: F.avg_pool2d(F.hardswish(x), 2)), INPUTS, [INPUTS])
    convert.export(prepared, INPUTS, tmp_path / "model.tflite")
    found = operators((tmp_path / "model.tflite").read_bytes())
    assert (found["DEQUANTIZE"], found["QUANTIZE"]) == (1, 1)
    assert convert.compare(tmp_path / "model.tflite", prepared, INPUTS).largest_difference < 0.05


def test_a_float_file_stays_as_it_is():
    file = flatbuffer.parse(convert.convert(network(F.hardswish), INPUTS))
    assert float_islands.compute_in_float(file) == []


def test_an_operator_without_inputs_stays_as_it_is():
    """A generated file may leave out empty lists, as of an operator that makes a constant."""
    file = flatbuffer.parse(convert.convert(int8_model.prepare(network(F.hardswish), INPUTS, [INPUTS]), INPUTS))
    added = schema.OperatorT()
    added.opcodeIndex = flatbuffer.operator_code(file, schema.BuiltinOperator.VAR_HANDLE, 1)
    file.subgraphs[0].operators.append(added)
    parsed = flatbuffer.parse(flatbuffer.pack(file))
    assert float_islands.compute_in_float(parsed) == [InFloat("HARD_SWISH", "")]
    assert len(parsed.subgraphs[0].operators[-1].inputs) == len(parsed.subgraphs[0].operators[-1].outputs) == 0
