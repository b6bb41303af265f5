"""The .tflite of ResNet-20 on CIFAR-10 with its weights on 2^k levels: bytes, milliseconds and accuracy by how the
levels can be stored.

Quantized after training, the same bits for every layer but the first and the last, batch-norm statistics put right; the
file is written and checked as at the end of a run, on the whole test split, and timed in turns with the float file.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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
    from learners.uniform_quant import Settings, UniformQuant
    from pfray import bench, finalize
    from pfray.export import tflite
    from pfray.measure import example_input, place
    from pfray.train import reestimate_batch_norm

    FOLDER.mkdir(parents=True, exist_ok=True)
    work = job(MODEL)
    task, whole = work.task, FOLDER / "float.tflite"
    tflite.export(work.teacher, example_input(task), whole)
    print("| bits | zero is a level | stored as | of the bytes | of the milliseconds | PyTorch, % | file, % |")
    print("|---:|---|---|---:|---:|---:|---:|")
    shares = {}
    for symmetric in (True, False):
        settings = Settings(symmetric=symmetric)
        prepared = UniformQuant.prepare(work.teacher, task, settings)
        for bits in options.bits:
            model = copy.deepcopy(work.teacher)
            plan = UniformQuant.space(model, task, settings).uniform({"bits": bits})
            UniformQuant.compress(model, plan, settings, prepared, 0)
            place(model, "cpu")
            if options.bn_images:
                reestimate_batch_norm(model, task, options.bn_images, "float32")
            path = FOLDER / f"bits{bits}-{'symmetric' if symmetric else 'affine'}.tflite"
            found = finalize.write_checked(model.eval(), task, path, options.images)
            times = bench.latency_ms([path, whole], rounds=options.rounds)
            kinds = Counter(each["type"] for each in found["stored"].values())
            share = path.stat().st_size / whole.stat().st_size
            cells = [bits, "yes" if symmetric else "no", ", ".join(f"{n} {kind}" for kind, n in kinds.items())]
            cells += [f"{share:.3f}", f"{times[0] / times[1]:.2f}"]
            cells += [f"{100 * found[key]:.2f}" for key in ("torch_accuracy", "accuracy")]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            if symmetric:
                shares[bits] = share
    for bits in GOALS.keys() & shares.keys():
        close(f"{NAME}_{bits}", shares[bits], "of the float file's bytes", GOALS[bits])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description="Measure the .tflite of a model with quantized weights.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 3, 2])
    parser.add_argument("--images", type=int, help="test images (default: all)")
    parser.add_argument("--bn-images", type=int, default=2000, help="that batch norm is put right on; 0: it is not")
    parser.add_argument("--rounds", type=int, default=50, help="of the timing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
