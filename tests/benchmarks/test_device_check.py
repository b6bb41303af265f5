from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import device_check
from tests.benchmarks.runs import closing


def test_device_check_finds_outputs_that_differ(tmp_path, monkeypatch, capsys):
    class Interpreter:
        def get_input_details(self) -> list[dict[str, Any]]:
            return [{"shape": np.array([1, 3, 2, 2])}]

        def get_tensor_details(self) -> list[dict[str, Any]]:
            return []

    monkeypatch.setattr(device_check, "open_interpreter", lambda path: Interpreter())
    monkeypatch.setattr(device_check, "predict", lambda path, inputs: [inputs.sum((2, 3))])
    expected = str(tmp_path / "expected.npz")
    assert device_check.main(["make", expected, "model.tflite"]) == 0
    assert device_check.main(["compare", expected, "model.tflite"]) == 0
    assert closing(capsys.readouterr().out)["value"] == 0.0
    monkeypatch.setattr(device_check, "predict", lambda path, inputs: [inputs.sum((2, 3)) + 0.001])
    assert device_check.main(["compare", expected, "model.tflite"]) == 1
    line = closing(capsys.readouterr().out)
    assert line["ok"] is False
    assert line["value"] == pytest.approx(10, rel=0.01)  # of the allowed 1e-4
    monkeypatch.setattr(device_check, "predict", lambda path, inputs: [np.full((len(inputs), 3), np.nan)])
    assert device_check.main(["compare", expected, "model.tflite"]) == 1
    assert device_check.main(["compare", str(tmp_path / "other.npz"), "model.tflite"]) == 2
    monkeypatch.setattr(device_check, "predict", lambda path, inputs: [np.ones((len(inputs), 3), np.float32)])
    assert device_check.main(["make", expected, "model.tflite"]) == 2
    assert "nothing to compare" in capsys.readouterr().err


def test_device_check_takes_a_missing_kernel_only_where_it_is_announced(tmp_path, monkeypatch, capsys):
    class Interpreter:
        def get_input_details(self) -> list[dict[str, Any]]:
            return [{"shape": np.array([1, 3, 2, 2])}]

        def get_tensor_details(self) -> list[dict[str, Any]]:
            return []

    def refuse(path: Path, inputs: np.ndarray) -> list[np.ndarray]:
        if path.name == "new.tflite":
            raise device_check.BenchError(f"{path} is newer: Didn't find op for builtin opcode 'CONV_2D'")
        return [inputs.sum((2, 3))]

    monkeypatch.setattr(device_check, "open_interpreter", lambda path: Interpreter())
    monkeypatch.setattr(device_check, "predict", lambda path, inputs: [inputs.sum((2, 3))])
    expected = str(tmp_path / "expected.npz")
    assert device_check.main(["make", expected, "old.tflite", "new.tflite"]) == 0
    monkeypatch.setattr(device_check, "predict", refuse)
    compare = ["compare", expected, "old.tflite", "new.tflite"]
    assert device_check.main(compare) == 2
    assert device_check.main([*compare, "--may-refuse", "new.tflite"]) == 0
    output = capsys.readouterr().out
    assert "has no kernels for it: new.tflite" in output
    assert "1 files, 1 refused" in closing(output)["unit"]
    assert device_check.main(["compare", expected, "new.tflite", "--may-refuse", "new.tflite"]) == 2
