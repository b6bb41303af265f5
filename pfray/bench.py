"""Time .tflite files on a device. Needs only numpy, and ai-edge-litert or tflite-runtime."""

from __future__ import annotations

import sys

from pfray.utils import command

if __name__ == "__main__":
    command.begin()

import argparse
import json
import math
import platform
import time
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

try:
    import numpy as np
except ImportError:
    if __name__ != "__main__":
        raise
    print("error: numpy is not installed. Remedy: pip install ai-edge-litert, which brings it", file=sys.stderr)
    sys.exit(2)

from pfray.measure.interpreter import BenchError, open_interpreter, runtime, set_inputs
from pfray.utils.file_values import drawn

# Shortest round of one file: long enough to hide the clock's resolution and the cost of a call.
ROUND_SECONDS = 0.02
WARMUP_ROUNDS = 5


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
            set_inputs(interpreter, path, example)
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
