"""Checks that exported files give the same outputs on a device's interpreter as on the machine that made them.

``make`` runs where pfray is installed and writes fixed inputs and their outputs; ``compare`` runs on the device, with
numpy and an interpreter only. ``make device-check`` does both, with an environment of tflite-runtime as the device, for
the demo's files and the files of ``device_files``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.result import close
from pfray.errors import PfrayError
from pfray.measure.interpreter import BenchError, open_interpreter, predict, runtime

NAME = "device_check"
TOLERANCE = 1e-4
# Of the largest output, for files that compute in integers: kernels round a half up or to even, by the processor.
INTEGER_TOLERANCE = 0.1
# What both interpreters say of an operator that is newer than they are.
NO_KERNEL = "Didn't find op for builtin opcode"
SAMPLES = 8


def make(files: Sequence[Path], expected: Path) -> None:
    """Write ``SAMPLES`` fixed random inputs of each file, and what the interpreter here makes of them.

    Raises BenchError where the outputs do not depend on the inputs, because then any interpreter would agree.
    """
    arrays: dict[str, np.ndarray] = {}
    for file in files:
        interpreter = open_interpreter(file)
        shape = interpreter.get_input_details()[0]["shape"]
        inputs = np.random.default_rng(0).standard_normal((SAMPLES, *shape[1:]), np.float32)
        (outputs,) = predict(file, inputs)
        if not np.ptp(outputs, axis=0).max() > 100 * TOLERANCE:
            raise BenchError(
                f"{file} gives nearly the same outputs for all inputs, so there is nothing to compare. "
                "Remedy: check a trained model"
            )
        arrays[f"{file.name}:inputs"], arrays[f"{file.name}:outputs"] = inputs, outputs
        arrays[f"{file.name}:integers"] = np.array(_in_integers(interpreter))
    np.savez(expected, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays for allow_pickle


def compare(files: Sequence[Path], expected: Path, may_refuse: Sequence[Path] = ()) -> dict[str, float | None]:
    """The largest difference between each file's outputs here and the expected ones, as a share of what is allowed.

    None for a file of ``may_refuse`` for whose operators the interpreter here has no kernels. Raises BenchError.
    """
    found: dict[str, float | None] = {}
    with np.load(expected) as arrays:
        for file in files:
            wanted = arrays[f"{file.name}:outputs"]
            try:
                (outputs,) = predict(file, arrays[f"{file.name}:inputs"])
            except BenchError as error:
                if file not in may_refuse or NO_KERNEL not in str(error):
                    raise
                found[str(file)] = None
                continue
            in_integers = arrays[f"{file.name}:integers"]
            allowed = INTEGER_TOLERANCE * np.abs(wanted).max() if in_integers else TOLERANCE
            # A nan is no agreement.
            difference = np.abs(outputs - wanted).max()
            found[str(file)] = float(difference / allowed) if np.isfinite(difference) else float("inf")
    return found


def _in_integers(interpreter: Any) -> bool:
    """True if the kernels compute in integers: then biases are int32 with a scale.

    Asked where the file was made, because tflite-runtime crashes over the details of a sparse tensor.
    """
    details = interpreter.get_tensor_details()
    return any(each["dtype"] == np.int32 and len(each["quantization_parameters"]["scales"]) for each in details)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 where the outputs differ, 2 where a file is missing or damaged."""
    options = _parser().parse_args(arguments)
    try:
        package = runtime()
        if options.mode == "make":
            make(options.files, options.expected)
            print(f"{options.expected}: {SAMPLES} outputs of {len(options.files)} files on {package.__name__}")
            return 0
        shares = compare(options.files, options.expected, options.may_refuse)
    except (PfrayError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    name = f"{package.__name__} {package.__version__}"
    for file, share in shares.items():
        what = "has no kernels for it" if share is None else f"differs by {share:.2g} of what is allowed"
        print(f"{name}: {what}: {file}")
    compared = [share for share in shares.values() if share is not None]
    if not compared:
        print(f"error: {name} has kernels for none of the files. Remedy: compare others, too", file=sys.stderr)
        return 2
    refused = len(shares) - len(compared)
    close(NAME, max(compared), f"of the allowed difference, {len(compared)} files, {refused} refused", "<= 1")
    return 0 if max(compared) <= 1 else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description="Check that .tflite files give the same outputs on a device as where they were made.",
    )
    parser.add_argument("mode", choices=("make", "compare"), help="make: here, first; compare: on the device")
    parser.add_argument("expected", type=Path, metavar="EXPECTED.npz", help="written by make, read by compare")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.tflite", help="the exported files")
    parser.add_argument("--may-refuse", nargs="+", type=Path, default=[], metavar="FILE.tflite",
                        help="of these, the ones that an older runtime need not have kernels for")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
