"""Run and time .tflite files on a device. Needs only numpy, and ai-edge-litert or tflite-runtime."""

from __future__ import annotations

import sys

from pfray.utils import command

if __name__ == "__main__":
    command.begin()

import argparse
import importlib.util
import json
import math
import platform
import struct
import time
import zipfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from pfray.errors import PfrayError
from pfray.utils.quiet import mute_stderr

try:
    import numpy as np
except ImportError:
    if __name__ != "__main__":
        raise
    print("error: numpy is not installed. Remedy: pip install ai-edge-litert, which brings it", file=sys.stderr)
    sys.exit(2)

from pfray.utils.file_values import dequantize, drawn, quantize

RUNTIMES = ("ai_edge_litert", "tflite_runtime")
# Shortest round of one file: long enough to hide the clock's resolution and the cost of a call.
ROUND_SECONDS = 0.02
WARMUP_ROUNDS = 5


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
        _set_inputs(interpreter, path, arrays)
        interpreter.invoke()
        details = interpreter.get_output_details()
        found.append([dequantize(interpreter.get_tensor(detail["index"]), detail) for detail in details])
    return found


def _set_inputs(interpreter: Any, path: str | Path, arrays: Sequence[np.ndarray]) -> None:
    """Raises BenchError if number or shapes are not the file's."""
    details = interpreter.get_input_details()
    if len(details) != len(arrays):
        raise BenchError(f"{path} takes {len(details)} inputs, not {len(arrays)}. Remedy: one array for each input")
    for detail, array in zip(details, arrays, strict=True):
        shape = tuple(int(size) for size in detail["shape"])
        if shape != array.shape:
            raise BenchError(f"{path} takes inputs of shape {shape}, not {array.shape}. Remedy: export it again")
        interpreter.set_tensor(detail["index"], quantize(array, detail))


def round_times_ms(
    paths: Sequence[str | Path],
    rounds: int = 15,
    threads: int = 1,
    round_seconds: float = ROUND_SECONDS,
    example: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Milliseconds of one inference ``(len(paths), rounds)``, the mean of each round.

    The files take turns (A, B, A, B, ...), so that a change of clock rate or load affects all alike.

    example: one sample's inputs, an array ``(1, ...)`` for each of the files' inputs. Without it they are drawn with a
    fixed seed: normal numbers, and 0 or 1 where the file takes whole numbers that are not quantized, such as tokens.
    Raises BenchError for a missing or damaged file, and for inputs that a file does not take.
    """
    interpreters = [open_interpreter(path, threads) for path in paths]
    for interpreter, path in zip(interpreters, paths, strict=True):
        if example is not None:
            _set_inputs(interpreter, path, example)
            continue
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], drawn(detail))
    runs = [(interpreter, _repeats(interpreter, path, round_seconds))
            for interpreter, path in zip(interpreters, paths, strict=True)]  # fmt: skip
    times = np.empty((len(paths), rounds))
    for turn in range(rounds):
        for i, (interpreter, count) in enumerate(runs):
            times[i, turn] = _seconds(interpreter, count) / count * 1e3
    return times


def latency_ms(
    paths: Sequence[str | Path], rounds: int = 15, threads: int = 1, example: Sequence[np.ndarray] | None = None
) -> list[float]:
    """Median milliseconds of one inference of each file, timed in turns (see ``round_times_ms``)."""
    times = round_times_ms(paths, rounds, threads, example=example)
    return [float(median) for median in np.median(times, axis=1)]


def compare(
    paths: Sequence[str | Path], rounds: int = 15, threads: int = 1, example: Sequence[np.ndarray] | None = None
) -> dict[str, Any]:
    """Results that the command line prints, as JSON values: the runtime, and for each file its bytes, the quartiles of
    its rounds in milliseconds, and the ratio of its median to the first file's."""
    package = runtime()
    times = round_times_ms(paths, rounds, threads, example=example)
    quartiles = np.percentile(times, [25, 50, 75], axis=1).T.tolist()
    files = [
        {
            "path": str(path),
            "size_bytes": Path(path).stat().st_size,
            "q1_ms": low,
            "median_ms": median,
            "q3_ms": high,
            "ratio": median / quartiles[0][1],
        }
        for path, (low, median, high) in zip(paths, quartiles, strict=True)
    ]
    settings = {"machine": platform.machine(), "threads": threads, "rounds": rounds}
    return {"runtime": package.__name__, "version": package.__version__, **settings, "files": files}


def read_example(path: str | Path) -> list[np.ndarray]:
    """One sample's inputs from a ``.npz`` file, in its order, or from a ``.npy`` file, each ``(1, ...)``.

    Raises BenchError for a missing or damaged file; pickled objects are refused.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        return [loaded] if isinstance(loaded, np.ndarray) else [loaded[name] for name in loaded.files]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BenchError(
            f"{path} holds no arrays ({' '.join(str(error).split())}). Remedy: a .npz file of numpy.savez with an "
            "array (1, ...) for each input, in order"
        ) from error


def main(arguments: Sequence[str] | None = None, program: str = "python -m pfray.bench") -> int:
    """Exit code: 0, or 2 after a one-line message on stderr."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return command.run_command(partial(_main, given, program), given)


def _main(arguments: Sequence[str], program: str) -> int:
    options = _parser(program).parse_args(arguments)
    example = read_example(options.inputs) if options.inputs else None
    result = compare(options.files, options.rounds, options.threads, example)
    print(json.dumps(result, indent=2) if options.json else _table(result))
    return 0


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


def _repeats(interpreter: Any, path: str | Path, round_seconds: float) -> int:
    """Number of inferences that fill one round, after a warm-up. Raises BenchError if the file fails on its inputs."""
    deadline = time.perf_counter() + WARMUP_ROUNDS * round_seconds
    try:
        times = [_seconds(interpreter, 1), _seconds(interpreter, 1)]
    except RuntimeError as error:
        raise BenchError(
            f"{path} fails on its inputs ({' '.join(str(error).split())}). Remedy: inputs in the model's range; on the "
            "command line --inputs FILE.npz"
        ) from error
    while time.perf_counter() < deadline:
        times.append(_seconds(interpreter, 1))
    return math.ceil(round_seconds / max(min(times), 1e-7))


def _seconds(interpreter: Any, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        interpreter.invoke()
    return time.perf_counter() - start


def _table(result: dict[str, Any]) -> str:
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    lines = [
        f"{result['runtime']} {result['version']}, {result['machine']}, {threads}, {result['rounds']} rounds by turns",
        f"{'bytes':>12} {'median ms':>11} {'middle half of rounds, ms':>27} {'ratio':>7}  file",
    ]
    for file in result["files"]:
        spread = f"{file['q1_ms']:.4f} .. {file['q3_ms']:.4f}"
        lines.append(
            f"{file['size_bytes']:>12,} {file['median_ms']:>11.4f} {spread:>27} {file['ratio']:>6.2f}x  {file['path']}"
        )
    return "\n".join(lines)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = command.make_parser(
        program,
        "Time .tflite files against each other. The files run by turns, and medians of the rounds are printed; the "
        "ratio is to the first file (below 1 is faster).",
        ["model.tflite teacher.tflite", "model.tflite --threads 4 --rounds 50 --json"],
        "Needs numpy and one of the packages ai-edge-litert and tflite-runtime.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE.tflite", help="the files; the first is the reference")
    parser.add_argument("--threads", type=_positive, default=1, help="threads of the interpreter (default 1)")
    parser.add_argument("--rounds", type=_positive, default=15, help="timed rounds of each file (default 15)")
    parser.add_argument(
        "--inputs",
        metavar="FILE.npz",
        help="one sample's inputs, an array (1, ...) for each, in order (default: random; whole numbers are 0 or 1)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
