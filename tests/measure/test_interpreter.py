from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pfray.errors import PfrayError
from pfray.export.tflite import convert
from pfray.measure import interpreter
from pfray.models.lenet import lenet


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return lenet(10, 1).eval()


@pytest.fixture(scope="module")
def file(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interpreter") / "lenet.tflite"
    convert.export(model, torch.zeros(1, 1, 32, 32), path)
    return path


def test_predict_gives_the_models_outputs_for_every_sample(model: torch.nn.Module, file: Path) -> None:
    inputs = torch.randn(3, 1, 32, 32)
    (outputs,) = interpreter.predict(file, inputs.numpy())
    with torch.inference_mode():
        expected = model(inputs).numpy()
    assert outputs.shape == (3, 10)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_predict_names_both_shapes_when_they_differ(file: Path) -> None:
    with pytest.raises(interpreter.BenchError, match=r"\(1, 1, 32, 32\), not \(1, 3, 32, 32\).*Remedy"):
        interpreter.predict(file, np.zeros((2, 3, 32, 32), np.float32))


def test_tflite_runtime_beside_numpy_2_is_refused_before_it_crashes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tflite_runtime").mkdir()
    (tmp_path / "tflite_runtime" / "__init__.py").write_text("raise SystemError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(interpreter, "RUNTIMES", ("tflite_runtime",))
    with pytest.raises(interpreter.BenchError, match=r'needs numpy below 2, here is 2.*pip install "numpy<2"'):
        interpreter.runtime()


def test_errors_are_pfrays() -> None:
    assert issubclass(interpreter.BenchError, PfrayError)
