"""Run .tflite files on TensorFlow Lite's interpreter. Needs only numpy, and ai-edge-litert or tflite-runtime."""

from __future__ import annotations

import importlib.util
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pfray.errors import PfrayError
from pfray.utils.file_values import dequantize, quantize
from pfray.utils.quiet import mute_stderr

RUNTIMES = ("ai_edge_litert", "tflite_runtime")


class BenchError(PfrayError):
    """A .tflite file or the runtime to run it is missing, damaged, or does not fit the inputs."""


def runtime() -> ModuleType:
    """Package of the installed interpreter, ai-edge-litert before tflite-runtime. Raises BenchError without one."""
    failures = []
    for name in RUNTIMES:
        try:
            # pip installs numpy 2 with tflite-runtime, which then crashes on the first file.
            if name == "tflite_runtime" and importlib.util.find_spec(name) and int(np.__version__.split(".")[0]) >= 2:
                raise ImportError(f"needs numpy below 2, here is {np.__version__}")
            importlib.import_module(f"{name}.interpreter")
            return sys.modules[name]
        except ImportError as error:
            failures.append(f"{name}: {error}")
    raise BenchError(
        f"no TensorFlow Lite runtime can be imported ({'; '.join(failures)}). Remedy: pip install ai-edge-litert, "
        'or on Python 3.11 and older: pip install "numpy<2" tflite-runtime'
    )


def open_interpreter(path: str | Path, threads: int = 1) -> Any:
    """Interpreter of the file, with tensors allocated. Raises BenchError for a missing or damaged file."""
    package = runtime()
    if not Path(path).is_file():
        raise BenchError(f"{path}: no such file. Remedy: give the path of a .tflite file")
    try:
        _check_whole(Path(path).read_bytes())
        # The runtime tells of its kernels on stderr; what is wrong with a file is in its errors.
        with mute_stderr():
            interpreter = sys.modules[f"{package.__name__}.interpreter"].Interpreter(str(path), num_threads=threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        one_line = " ".join(str(error).split())
        raise BenchError(
            f"{path} is damaged, or newer than {package.__name__} {package.__version__}: {one_line}. "
            "Remedy: copy or export the file again, or install a newer runtime"
        ) from error
    return interpreter


def predict(
    path: str | Path, inputs: np.ndarray | Sequence[np.ndarray], count: int | None = None, threads: int = 1
) -> list[np.ndarray]:
    """The file's outputs, each ``(N, ...)``, for N samples, one at a time through a batch-1 file.

    inputs: an array ``(N, ...)`` for each of the file's inputs; one without axes is given with every sample.
    count: N, if it is not the length of the first array. Inputs and outputs that the file has in quantized integers are
    converted by their own scale and zero point; outputs then are float32.
    Raises BenchError if the file has other inputs, or inputs of another shape.
    """
    arrays = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
    numbers = range(len(arrays[0]) if count is None else count)
    samples = ([array[i : i + 1] if array.ndim else array for array in arrays] for i in numbers)
    found = zip(*predict_each(path, samples, threads), strict=True)
    return [np.concatenate(outputs) if outputs[0].ndim else outputs[0] for outputs in found]


def predict_each(path: str | Path, samples: Iterable[Sequence[np.ndarray]], threads: int = 1) -> list[list[np.ndarray]]:
    """The file's outputs for each sample. samples: an array for each of the file's inputs, in the input's own shape.

    Otherwise as ``predict``.
    """
    interpreter, found = open_interpreter(path, threads), []
    for arrays in samples:
        set_inputs(interpreter, path, arrays)
        interpreter.invoke()
        details = interpreter.get_output_details()
        found.append([dequantize(interpreter.get_tensor(detail["index"]), detail) for detail in details])
    return found


def set_inputs(interpreter: Any, path: str | Path, arrays: Sequence[np.ndarray]) -> None:
    """Set the file's inputs. Raises BenchError if number or shapes are not the file's."""
    details = interpreter.get_input_details()
    if len(details) != len(arrays):
        raise BenchError(f"{path} takes {len(details)} inputs, not {len(arrays)}. Remedy: one array for each input")
    for detail, array in zip(details, arrays, strict=True):
        shape = tuple(int(size) for size in detail["shape"])
        if shape != array.shape:
            raise BenchError(f"{path} takes inputs of shape {shape}, not {array.shape}. Remedy: export it again")
        interpreter.set_tensor(detail["index"], quantize(array, detail))


def _check_whole(content: bytes) -> None:
    """Raise ValueError unless every constant lies inside the file: tflite-runtime crashes on a truncated one.

    In the flatbuffer, field 4 of the root is the list of buffers, and field 0 of a buffer its bytes.
    """

    def number(kind: str, at: int) -> int:
        return int(struct.unpack_from(f"<{kind}", content, at)[0])

    def field(table: int, index: int) -> int:
        """Offset of the field's vector; 0 if the table lacks it."""
        vtable, slot = table - number("i", table), 4 + 2 * index
        offset = number("H", vtable + slot) if slot < number("H", vtable) else 0
        return table + offset + number("I", table + offset) if offset else 0

    if content[4:8] != b"TFL3":
        raise ValueError("no TensorFlow Lite model")
    try:
        buffers = field(number("I", 0), 4)
        for entry in range(buffers + 4, buffers + 4 + 4 * number("I", buffers), 4):
            data = field(entry + number("I", entry), 0)
            if data and data + 4 + number("I", data) > len(content):
                raise ValueError("it ends too early")
    except struct.error:
        raise ValueError("it ends too early") from None
