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
from collections.abc import Sequence
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


def predict(path: str | Path, inputs: np.ndarray, threads: int = 1) -> np.ndarray:
    """Outputs ``(N, K)`` for inputs ``(N, C, H, W)``, both float32, one sample at a time through a batch-1 file.

    Integer inputs and outputs are converted by the file's own scale and zero point.
    Raises BenchError if the file has several inputs or outputs, or inputs of another shape.
    """
    interpreter = open_interpreter(path, threads)
    ins, outs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(ins) != 1 or len(outs) != 1:
        raise BenchError(f"{path} has {len(ins)} inputs and {len(outs)} outputs. Remedy: use a model with one of each")
    shape = tuple(int(size) for size in ins[0]["shape"])
    if shape != (1, *inputs.shape[1:]):
        raise BenchError(f"{path} takes inputs of shape {shape}, not {(1, *inputs.shape[1:])}. Remedy: export it again")
    outputs = np.empty((len(inputs), *outs[0]["shape"][1:]), np.float32)
    for sample, output in zip(inputs, outputs, strict=True):
        interpreter.set_tensor(ins[0]["index"], quantize(sample[None], ins[0]))
        interpreter.invoke()
        output[...] = dequantize(interpreter.get_tensor(outs[0]["index"])[0], outs[0])
    return outputs


def round_times_ms(
    paths: Sequence[str | Path], rounds: int = 15, threads: int = 1, round_seconds: float = ROUND_SECONDS
) -> np.ndarray:
    """Milliseconds of one inference ``(len(paths), rounds)``, the mean of each round.

    The files take turns (A, B, A, B, ...), so that a change of clock rate or load affects all alike.
    Inputs are random with a fixed seed. Raises BenchError for a missing or damaged file.
    """
    interpreters = [open_interpreter(path, threads) for path in paths]
    runs = [(interpreter, _repeats(interpreter, round_seconds)) for interpreter in interpreters]
    times = np.empty((len(paths), rounds))
    for turn in range(rounds):
        for i, (interpreter, count) in enumerate(runs):
            times[i, turn] = _seconds(interpreter, count) / count * 1e3
    return times


def latency_ms(paths: Sequence[str | Path], rounds: int = 15, threads: int = 1) -> list[float]:
    """Median milliseconds of one inference of each file, timed in turns (see ``round_times_ms``)."""
    return [float(median) for median in np.median(round_times_ms(paths, rounds, threads), axis=1)]


def compare(paths: Sequence[str | Path], rounds: int = 15, threads: int = 1) -> dict[str, Any]:
    """Results that the command line prints, as JSON values: the runtime, and for each file its bytes, the quartiles of
    its rounds in milliseconds, and the ratio of its median to the first file's."""
    package = runtime()
    quartiles = np.percentile(round_times_ms(paths, rounds, threads), [25, 50, 75], axis=1).T.tolist()
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


def main(arguments: Sequence[str] | None = None, program: str = "python -m pfray.bench") -> int:
    """Exit code: 0, or 2 after a one-line message on stderr."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return command.run_command(partial(_main, given, program), given)


def _main(arguments: Sequence[str], program: str) -> int:
    options = _parser(program).parse_args(arguments)
    result = compare(options.files, options.rounds, options.threads)
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


def quantize(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """``values`` in the dtype of a tensor, rounded by its scale and zero point if it is quantized."""
    dtype = np.dtype(detail["dtype"])
    scale, zero_point = detail["quantization"]
    if not np.issubdtype(dtype, np.integer) or scale == 0:
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.round(values / scale) + zero_point, limits.min, limits.max).astype(dtype)


def dequantize(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """The float32 values that a tensor stands for."""
    scale, zero_point = detail["quantization"]
    if not np.issubdtype(values.dtype, np.integer) or scale == 0:
        return values.astype(np.float32)
    return (values.astype(np.float32) - zero_point) * np.float32(scale)


def _repeats(interpreter: Any, round_seconds: float) -> int:
    """Number of inferences that fill one round, after a warm-up on random inputs."""
    generator = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        values = generator.standard_normal(tuple(detail["shape"]), np.float32)
        interpreter.set_tensor(detail["index"], quantize(values, detail))
    deadline = time.perf_counter() + WARMUP_ROUNDS * round_seconds
    times = [_seconds(interpreter, 1), _seconds(interpreter, 1)]
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
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
