from __future__ import annotations

import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pfray import bench
from pfray.export.tflite import convert
from pfray.measure import interpreter
from pfray.models.lenet import lenet


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "lenet.tflite"
    convert.export(lenet(10, 1), torch.zeros(1, 1, 32, 32), path)
    return path


def test_latency_gives_one_positive_median_a_file(file: Path) -> None:
    first, second = bench.latency_ms([file, file], rounds=3)
    assert 0 < first < 1000
    assert 0 < second < 1000


def test_files_take_turns_and_times_are_of_one_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, now = [], 0.0

    def interpreter(path: str, threads: int) -> SimpleNamespace:
        def invoke() -> None:
            nonlocal now
            now += {"a": 2**-10, "b": 2**-8}[path]  # their sums are exact
            calls.append(path)

        return SimpleNamespace(invoke=invoke, get_input_details=list)

    monkeypatch.setattr(bench, "open_interpreter", interpreter)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    times = bench.round_times_ms(["a", "b"], rounds=3, round_seconds=20 / 2**10)
    _, _, *rounds = [(path, len(list(own))) for path, own in groupby(calls)]  # the first two warm up
    assert rounds == [("a", 20), ("b", 5)] * 3
    np.testing.assert_allclose(times, [[1000 / 2**10] * 3, [1000 / 2**8] * 3])


def test_comparison_quotes_bytes_quartiles_and_ratio(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    times = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 6.0, 8.0, 10.0]])
    monkeypatch.setattr(bench, "round_times_ms", lambda paths, rounds, threads, example: times)
    first, second = bench.compare([file, file], rounds=5)["files"]
    assert (first["q1_ms"], first["median_ms"], first["q3_ms"], first["ratio"]) == (2.0, 3.0, 4.0, 1.0)
    assert (second["median_ms"], second["ratio"]) == (6.0, 2.0)
    assert first["size_bytes"] == file.stat().st_size


def test_command_prints_a_line_a_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([str(file), str(file), "--rounds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("ai_edge_litert ")
    assert "1 thread, 2 rounds" in lines[0]
    assert f"{file.stat().st_size:,}" in lines[2]
    assert "1.00x" in lines[2]


def test_command_prints_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([str(file), "--rounds", "2", "--threads", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["threads"], result["rounds"], len(result["files"])) == (2, 2, 1)
    assert result["files"][0]["q1_ms"] <= result["files"][0]["median_ms"] <= result["files"][0]["q3_ms"]


@pytest.mark.parametrize("kept", [0, 100, 1000, 0.5, 0.99])
def test_a_file_cut_short_is_one_line_and_exit_code_2(
    kept: float, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = file.read_bytes()
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    assert bench.main([str(cut)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cut.tflite is damaged" in error
    assert "Remedy" in error


def test_a_missing_and_a_foreign_file_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "notes.tflite"
    foreign.write_text("not a model")
    for path, reason in ((foreign, "no TensorFlow Lite model"), (tmp_path / "none.tflite", "no such file")):
        assert bench.main([str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert reason in captured.err


def test_without_a_runtime_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interpreter, "RUNTIMES", ("no_such_runtime",))
    assert bench.main([str(file)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install ai-edge-litert" in error


@pytest.mark.parametrize("arguments", [["x.tflite", "--rounds", "0"], ["x.tflite", "--threads", "two"], []])
def test_wrong_arguments_exit_with_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        bench.main(arguments)
    assert exit_info.value.code == 2


def test_the_module_imports_neither_torch_nor_a_runtime() -> None:
    code = "import sys, pfray.bench; print({'torch', 'ray', 'ai_edge_litert', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
