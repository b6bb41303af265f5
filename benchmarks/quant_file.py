"""Bytes, latency and accuracy of the .tflite of ResNet-20 on CIFAR-10 with weights on 2^k levels or in codebooks, for
each way to store them.

Quantized after training with re-estimated batch norms, with the same bits for every layer except the first and the
last. The file is written and checked as at the end of a run, on the whole test split, and timed alternately with the
float file.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import job, needed

NAME = "quant_file"
FOLDER = ROOT / "runs" / NAME
MODEL = "resnet20"
# By bits, of the float file's bytes, where zero is a level.
GOALS = {8: "<= 0.30", 4: "<= 0.17"}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(MODEL), "put the data there"):
        return SKIPPED
    from learners.non_uniform_quant import NonUniformQuant
    from learners.non_uniform_quant import Settings as CodebookSettings
    from learners.uniform_quant import Settings, UniformQuant
    from pfray import bench
    from pfray.export.tflite import convert
    from pfray.nn.modes import place
    from pfray.task import example_input
    from pfray.training.batch_norm import reestimate_batch_norm
    from pfray.workflow import finalize

    FOLDER.mkdir(parents=True, exist_ok=True)
    work = job(MODEL)
    task, whole = work.task, FOLDER / "float.tflite"
    convert.export(work.teacher, example_input(task), whole)
    print("| bits | levels | stored as | of the bytes | of the time | PyTorch, % | file, % | outputs differ by |")
    print("|---:|---|---|---:|---:|---:|---:|---:|")
    forms: dict[str, tuple[Any, Any]] = {
        "even, with a zero": (UniformQuant, Settings(symmetric=True)),
        "even": (UniformQuant, Settings()),
        "codebook": (NonUniformQuant, CodebookSettings()),
    }
    shares = {}
    for form, (learner, settings) in forms.items():
        algorithm = learner(work.teacher, task, settings)
        for bits in options.bits:
            model = place(algorithm.compress(algorithm.space().uniform({"bits": bits})).model, "cpu")
            if options.bn_images:
                reestimate_batch_norm(model, task, options.bn_images, "float32")
            path = FOLDER / f"{form.replace(', ', '-').replace(' ', '-')}{bits}.tflite"
            found = finalize.write_checked(model.eval(), task, path, options.images)
            times = bench.latency_ms([path, whole], rounds=options.rounds)
            kinds = Counter(each["type"] for each in found["stored"].values())
            share = shares[form, bits] = path.stat().st_size / whole.stat().st_size
            cells = [bits, form, ", ".join(f"{n} {kind}" for kind, n in kinds.items())]
            cells += [f"{share:.3f}", f"{times[0] / times[1]:.2f}"]
            cells += [f"{100 * found[key]:.2f}" for key in ("torch_accuracy", "accuracy")]
            cells += [f"{found['max_abs_diff']:.2g}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    for bits in GOALS.keys() & set(options.bits):
        close(f"{NAME}_{bits}", shares["even, with a zero", bits], "of the float file's bytes", GOALS[bits])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(NAME, "Measure the .tflite of a model with quantized weights.")
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 3, 2])
    parser.add_argument("--images", type=int, help="test images (default: all)")
    parser.add_argument("--bn-images", type=int, default=2000, help="that batch norm is put right on; 0: it is not")
    parser.add_argument("--rounds", type=int, default=50, help="of the timing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
