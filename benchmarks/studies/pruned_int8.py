"""ResNet-56 pruned, retrained and then quantized: the int8 .tflite against the uncompressed network's float file.

It starts from the networks that ``channel_retraining`` keeps, and quantizes them after training, or with ``--epochs``
of quantization-aware training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import int8_speed
from benchmarks.parser import make_parser
from benchmarks.result import SKIPPED, close, is_missing
from benchmarks.sparse_resnet import job, needed
from benchmarks.studies import channel_retraining
from benchmarks.studies.channel_pruning import MODEL

NAME = "pruned_int8"
FASTER, SMALLER, LOST = ">= 4.5", ">= 8", "<= 0.7"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(MODEL), "put the data there"):
        return SKIPPED
    from pfray import bench
    from pfray.measure.evaluation import evaluate

    work = job(MODEL)
    model = channel_retraining.retrained_model(options.factor, options.method)
    if model is None:
        print(f"{NAME}: skipped, {options.method} at {options.factor}x is not retrained. "
              "Remedy: python -m benchmarks.studies.channel_retraining")  # fmt: skip
        return SKIPPED
    pruned, quantized = int8_speed.export(f"{MODEL}-{options.factor}", model, work, options.epochs)
    whole, _ = int8_speed.export(MODEL, work.teacher, work)
    sizes = {path: path.stat().st_size for path in (whole, pruned, quantized)}
    accuracy = evaluate(work.teacher, work.task, work.task.test).accuracy
    for path in (pruned, quantized):
        print(f"{path.name}: {sizes[path]:,} bytes of {sizes[whole]:,}, "
              f"{100 * int8_speed.accuracy(path, work.task):.2f} % of {100 * accuracy:.2f} %", flush=True)  # fmt: skip
    for threads in (1, 2):
        before, between, after = bench.latency_ms([whole, pruned, quantized], threads=threads)
        print(f"{threads} threads: {before:.3f} ms, pruned {between:.3f} ms, both {after:.3f} ms", flush=True)
        close(f"{NAME}_{threads}", before / after, "times faster than the whole network in float", FASTER)
    close(f"{NAME}_size", sizes[whole] / sizes[quantized], "times smaller than its file", SMALLER)
    close(f"{NAME}_lost", 100 * (accuracy - int8_speed.accuracy(quantized, work.task)), "points of test accuracy", LOST)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        f"studies.{NAME}",
        "Measure the pruned and quantized .tflite against the uncompressed network's.",
    )
    parser.add_argument("--factor", type=float, default=2.5, choices=sorted(channel_retraining.TABLE))
    parser.add_argument("--method", default="searched LASSO, distilled")
    parser.add_argument("--epochs", type=int, default=0, help="of quantization-aware training")
    return parser


if __name__ == "__main__":
    sys.exit(main())
