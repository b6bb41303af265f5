"""Quantized weights in a .tflite file: as which type each is stored, and that the file computes what the model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from pfray.export.tflite import convert, flatbuffer
from pfray.export.tflite import quantized as quantized_tflite
from pfray.export.tflite.quantized import CHOICES, Stored
from pfray.quantization import affine, codebook
from pfray.quantization.qparams import QParams, attach

INPUTS = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))
# Of the largest output: kernels for int4 round what they read to 255 levels.
ROUNDED, EXACT = 0.03, 1e-5
EIGHT_EXACT = Stored(8, "int8", "exact")


def net() -> nn.Sequential:
    """A convolution with a batch norm of both signs, a grouped and a depthwise one, and a linear layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, groups=32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.linspace(-2, 2, 32))
    return model.eval()


LAYERS = ("0", "3", "5", "9")


def qparams(weight: torch.Tensor, bits: int, symmetric: bool = True, count: int | None = None) -> QParams:
    return QParams(bits, *affine.fit(weight, bits, count or len(weight), symmetric=symmetric))


def quantized(bits: int, symmetric: bool = True, names: tuple[str, ...] = LAYERS) -> nn.Sequential:
    model = net()
    for name in names:
        attach(model.get_submodule(name), qparams(model.get_parameter(f"{name}.weight").detach(), bits, symmetric))
    return model


def stored(model: nn.Module, folder: Path, allowed: frozenset[str] = CHOICES[0]) -> tuple[dict[str, Stored], float]:
    """(what each layer became, the largest difference of an output as a share of the largest)."""
    convert.export(model, INPUTS, folder / "float.tflite")
    file = flatbuffer.parse((folder / "float.tflite").read_bytes())
    found = quantized_tflite.quantize(file, model, allowed)
    (folder / "model.tflite").write_bytes(flatbuffer.pack(file))
    compared = convert.compare(folder / "model.tflite", model, INPUTS)
    outputs, difference = compared.file, compared.largest_difference
    assert outputs.std(0).min() > 1e-4, "outputs that ignore the inputs would compare equal for nothing"
    return found, difference / outputs.abs().max().item()


def share(folder: Path) -> float:
    return (folder / "model.tflite").stat().st_size / (folder / "float.tflite").stat().st_size


def test_eight_bits_are_stored_exactly_and_unpacked_when_the_file_is_opened(tmp_path):
    found, difference = stored(quantized(8), tmp_path)
    assert found == dict.fromkeys(LAYERS, EIGHT_EXACT)
    assert difference < EXACT
    weights = sum(net().get_parameter(f"{name}.weight").numel() for name in LAYERS)
    assert (tmp_path / "float.tflite").stat().st_size - (tmp_path / "model.tflite").stat().st_size > 2 * weights


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_four_bits_are_int4_where_there_are_kernels_and_int8_elsewhere(bits, tmp_path):
    found, difference = stored(quantized(bits), tmp_path)
    assert {name: each.type for name, each in found.items()} == {"0": "int4", "3": "int8", "5": "int8", "9": "int4"}
    assert found["0"].rounds
    assert "no kernel here" in found["3"].reason
    assert not found["3"].rounds
    assert difference < ROUNDED


def test_an_older_runtime_is_told_that_it_cannot_read_int4(tmp_path):
    stored(quantized(4), tmp_path)
    file = schema.ModelT.InitFromObj(schema.Model.GetRootAs((tmp_path / "model.tflite").read_bytes(), 0))
    graph = file.subgraphs[0]
    int4 = [i for i, tensor in enumerate(graph.tensors) if tensor.type == schema.TensorType.INT4]
    codes = [file.operatorCodes[o.opcodeIndex] for o in graph.operators if {*o.inputs} & {*int4}]
    assert {(code.builtinCode, code.version) for code in codes} == set(quantized_tflite.INT4_VERSIONS.items())


def test_without_int4_the_same_weights_are_exact_in_int8(tmp_path):
    found, difference = stored(quantized(3), tmp_path, CHOICES[1])
    assert {each.type for each in found.values()} == {"int8"}
    assert not any(each.rounds for each in found.values())
    assert difference < EXACT


@pytest.mark.parametrize("bits", [2, 8])
def test_levels_without_a_zero_become_the_nearest_of_int8_or_stay_float(bits, tmp_path):
    found, difference = stored(quantized(bits, symmetric=False), tmp_path)
    assert {(each.type, each.rounds) for each in found.values()} == {("int8", True)}
    assert all("to the nearest, at most 0." in each.reason for each in found.values())
    assert ("learner.symmetric=true" in found["0"].reason) == (bits == 2)
    assert EXACT < difference < ROUNDED
    found, difference = stored(quantized(bits, symmetric=False), tmp_path, CHOICES[2])
    assert {each.type for each in found.values()} == {"float"}
    assert difference < EXACT


def test_the_last_choice_never_rounds(tmp_path):
    for symmetric in (True, False):
        found, difference = stored(quantized(4, symmetric), tmp_path, CHOICES[-1])
        assert not any(each.rounds for each in found.values())
        assert difference < EXACT


def test_one_range_for_a_tensor_is_exact_and_runs_across_channels_are_not(tmp_path):
    model = net()
    for name, count in (("0", 1), ("9", 7)):
        attach(model.get_submodule(name), qparams(model.get_parameter(f"{name}.weight").detach(), 6, count=count))
    found, difference = stored(model, tmp_path)
    assert found["0"] == Stored(6, "int8", "exact")
    assert found["9"].rounds
    assert found["3"] == Stored(None, "float", "not quantized")
    assert difference < ROUNDED


@pytest.mark.parametrize(("bits", "count"), [(1, 1), (3, 1), (3, 32), (8, 5)])
def test_the_values_of_codebooks_become_the_nearest_of_int8_or_stay_float(bits, count, tmp_path):
    model = net()
    for name in LAYERS:
        weight = model.get_parameter(f"{name}.weight").detach()
        buckets = min(count, len(weight))
        attach(model.get_submodule(name), QParams(bits, codebook=codebook.fit(weight, bits, buckets)))
    found, difference = stored(model, tmp_path)
    assert {(each.bits, each.type) for each in found.values()} == {(bits, "int8")}
    assert all("to the nearest, at most 0." in each.reason for each in found.values() if each.rounds)
    assert difference < ROUNDED
    weights = sum(net().get_parameter(f"{name}.weight").numel() for name in LAYERS)
    assert (tmp_path / "float.tflite").stat().st_size - (tmp_path / "model.tflite").stat().st_size > 2 * weights
    found, difference = stored(model, tmp_path, CHOICES[-1])
    assert not any(each.rounds for each in found.values())
    assert difference < EXACT


def test_transposed_convolutions_stay_float_and_say_so(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ConvTranspose2d(8, 6, 2, 2), nn.Flatten()).eval()
    for name in ("0", "1"):
        attach(model.get_submodule(name), qparams(model.get_parameter(f"{name}.weight").detach(), 8))
    found, difference = stored(model, tmp_path)
    assert found == {
        "0": EIGHT_EXACT,
        "1": Stored(8, "float", "transposed and 3-d convolutions are kept in float"),
    }
    assert difference < EXACT


def test_the_file_of_a_model_without_levels_is_left_as_it_is(tmp_path):
    assert stored(net(), tmp_path)[0] == {}
    assert share(tmp_path) == 1
    assert (tmp_path / "model.tflite").read_bytes() == (tmp_path / "float.tflite").read_bytes()


def test_a_layer_that_the_file_lacks_is_said_to_be_float(tmp_path):
    model = quantized(8)
    convert.export(model, INPUTS, tmp_path / "float.tflite")
    other = quantized(8)
    with torch.no_grad():
        other.get_parameter("9.weight").copy_(other.get_parameter("9.weight").flip(1))
    found = quantized_tflite.quantize(flatbuffer.parse((tmp_path / "float.tflite").read_bytes()), other)
    assert found["0"].type == "int8"
    assert found["9"] == Stored(8, "float", "the file has no weight that is this layer's")


def test_constant_and_zero_channels_survive(tmp_path):
    model = net()
    with torch.no_grad():
        model.get_parameter("0.weight")[:3] = 0
        model.get_parameter("9.weight")[:2] = 0.25
    for name in ("0", "9"):
        attach(model.get_submodule(name), qparams(model.get_parameter(f"{name}.weight").detach(), 4))
    found, difference = stored(model, tmp_path)
    assert found["0"].type == found["9"].type == "int4"
    assert difference < ROUNDED
