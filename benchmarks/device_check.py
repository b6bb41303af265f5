"""Whether exported files give the same outputs on a device's interpreter as where they were made.

``make`` runs where pfray is installed and writes fixed inputs and their outputs; ``compare`` runs on the device, with
numpy and an interpreter only. ``make device-check`` does both, with an environment of tflite-runtime as the device.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.result import close
from pfray import bench
from pfray.errors import PfrayError

NAME = "device_check"
TOLERANCE = 1e-4
SAMPLES = 8


def make(files: Sequence[Path], expected: Path) -> None:
    """Write ``SAMPLES`` fixed random inputs of each file, and what the interpreter here makes of them.

    Raises BenchError where the outputs do not depend on the inputs, because then any interpreter would agree.
    """
    arrays: dict[str, np.ndarray] = {}
    for file in files:
        shape = bench.open_interpreter(file).get_input_details()[0]["shape"]
        inputs = np.random.default_rng(0).standard_normal((SAMPLES, *shape[1:]), np.float32)
        outputs = bench.predict(file, inputs)
        if not np.ptp(outputs, axis=0).max() > 100 * TOLERANCE:
            raise bench.BenchError(
                f"{file} gives nearly the same outputs for all inputs, so there is nothing to compare. "
                "Remedy: check a trained model"
            )
        arrays[f"{file.name}:inputs"], arrays[f"{file.name}:outputs"] = inputs, outputs
    np.savez(expected, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays for allow_pickle


def compare(files: Sequence[Path], expected: Path) -> dict[str, float]:
    """The largest absolute difference between each file's outputs here and the expected ones."""
    with np.load(expected) as arrays:
        return {
            str(file): float(
                np.abs(bench.predict(file, arrays[f"{file.name}:inputs"]) - arrays[f"{file.name}:outputs"]).max()
            )
            for file in files
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 where the outputs differ, 2 where a file is missing or damaged."""
    options = _parser().parse_args(arguments)
    try:
        package = bench.runtime()
        if options.mode == "make":
            make(options.files, options.expected)
            print(f"{options.expected}: {SAMPLES} outputs of {len(options.files)} files on {package.__name__}")
            return 0
        differences = compare(options.files, options.expected)
    except (PfrayError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file, difference in differences.items():
        print(f"{package.__name__} {package.__version__}: differs by {difference:.2e} at most: {file}")
    worst = max(differences.values())
    close(NAME, worst, "largest absolute difference of an output", f"<= {TOLERANCE:g}")
    return 0 if worst <= TOLERANCE else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description="Check that .tflite files give the same outputs on a device as where they were made.",
    )
    parser.add_argument("mode", choices=("make", "compare"), help="make: here, first; compare: on the device")
    parser.add_argument("expected", type=Path, metavar="EXPECTED.npz", help="written by make, read by compare")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.tflite", help="the exported files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
