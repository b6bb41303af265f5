from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pfray.errors import ExportError
from pfray.export.tflite import convert
from pfray.measure.interpreter import BenchError
from pfray.quantization import activations, affine, qparams


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else x + 1


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(8, 5))


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    return small_net()


@pytest.fixture(scope="module")
def file(model: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Training mode, channels_last and several samples: what a model looks like when its training has just ended.
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    path = tmp_path_factory.mktemp("tflite") / "made" / "small.tflite"
    assert convert.export(model, torch.zeros(4, 3, 8, 8), path) == path.stat().st_size
    return path


def test_the_file_reproduces_the_model_in_evaluation_mode(model: nn.Sequential, file: Path) -> None:
    inputs = torch.randn(6, 3, 8, 8)
    compared = convert.compare(file, model, inputs, batch_size=4)
    assert compared.file.shape == (6, 5)
    assert compared.largest_difference < 1e-6
    assert compared.file.std(0).min() > 1e-3, "outputs that ignore the inputs would compare equal for nothing"


def test_export_leaves_the_model_as_it_is(model: nn.Sequential, file: Path) -> None:
    assert model.training
    assert model.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)


def test_a_quantized_layer_is_exported_and_keeps_its_description(tmp_path: Path) -> None:
    model = small_net().eval()
    weight = model.get_parameter("0.weight")
    qparams.attach(model[0], qparams.QParams(3, *affine.fit(weight, 3, len(weight))))
    activations.attach(model, "0", torch.tensor([-2.0]), torch.tensor([0.25]), 4)
    convert.export(model, torch.zeros(1, 3, 8, 8), tmp_path / "quantized.tflite")
    # 16 levels from -2 on: rounding changes the outputs, so that they are equal says that the file rounds too.
    assert convert.compare(tmp_path / "quantized.tflite", model, torch.randn(6, 3, 8, 8)).largest_difference < 1e-6
    assert {"0.weight_bits", "0.weight_low", "0.weight_step"} <= set(model.state_dict())


def test_compare_sees_a_changed_weight(model: nn.Sequential, file: Path) -> None:
    changed = small_net()
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        changed.get_parameter("6.bias").add_(0.25)
    found = convert.compare(file, changed, torch.randn(2, 3, 8, 8))
    assert found.largest_difference == pytest.approx(0.25, abs=1e-5)


def test_compare_does_not_hide_a_nan(model: nn.Sequential, file: Path) -> None:
    assert not convert.compare(file, model, torch.full((1, 3, 8, 8), torch.nan)).largest_difference <= 1.0


def test_compare_names_outputs_of_another_shape(file: Path) -> None:
    with pytest.raises(ExportError, match=r"\(2, 5\), the model an output of shape \(2, 192\)\. Remedy"):
        convert.compare(file, nn.Flatten(), torch.zeros(2, 3, 8, 8))


def test_compare_of_a_missing_file_says_so(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"none\.tflite: no such file"):
        convert.compare(tmp_path / "none.tflite", model, torch.zeros(1, 3, 8, 8))


def test_a_model_that_cannot_be_converted_is_named_and_leaves_no_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=r"Branching cannot be converted.*Remedy"):
        convert.export(Branching(), torch.zeros(1, 1, 4, 4), tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []
    captured = capfd.readouterr()
    assert captured.out == ""


def test_a_conversion_prints_nothing_and_gives_stderr_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    convert.export(nn.Linear(4, 2), torch.zeros(1, 4), tmp_path / "linear.tflite")
    os.write(2, b"still here\n")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "still here\n"
