"""Makes small .tflite files of every kind that a run ships, for the check on a device.

The model is LeNet, trained on the digits for a few seconds: in float, with sparse weights, in int8, and with its
weights on 2^8 and 2^4 levels.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

NAME = "device_files"
# float32, zeros left out, integer kernels, int8 weights that are unpacked, int4 weights.
KINDS = ("float", "sparse", "int8", "weights8", "weights4")
SPARSITY = 0.9


def make(folder: Path) -> list[Path]:
    """Write ``KIND.tflite`` for all ``KINDS``, each checked against its model on test images."""
    import torch

    from learners.litert_quant import LitertQuant
    from learners.litert_quant import Settings as Int8Settings
    from learners.uniform_quant import Settings, UniformQuant
    from pfray.data import digits
    from pfray.models.lenet import lenet
    from pfray.nn.build import required_outputs
    from pfray.nn.modes import place
    from pfray.training import loop
    from pfray.training.settings import Training
    from pfray.workflow import finalize

    torch.manual_seed(0)
    task = digits.build()
    model = lenet(required_outputs(task), 1)
    loop.fit(model, task, Training(lr=0.05, batch_size=64), seed=0, steps=200)
    place(model, "cpu").eval()

    def on_levels(bits: int) -> Any:
        algorithm = UniformQuant(model, task, Settings(symmetric=True, ends=True))
        return algorithm.compress(algorithm.space().uniform({"bits": bits})).model

    sparse, int8 = copy.deepcopy(model), LitertQuant(model, task, Int8Settings(images=200))
    with torch.no_grad():
        for weight in (each for each in sparse.parameters() if each.dim() > 1):
            weight[weight.abs() < weight.abs().quantile(SPARSITY)] = 0
    models = {
        "float": model,
        "sparse": sparse,
        "int8": int8.finish(int8.space().uniform({"bits": 8})).model,
        "weights8": on_levels(8),
        "weights4": on_levels(4),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        path = folder / f"{kind}.tflite"
        found = finalize.write_checked(models[kind].eval(), task, path, None)
        types = sorted({each["type"] for each in found["stored"].values()}) or ["float"]
        print(f"{path}: {path.stat().st_size} bytes, weights {' and '.join(types)}", flush=True)
    return [folder / f"{kind}.tflite" for kind in KINDS]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description="Write small .tflite files of every kind, for `make device-check`.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to; made where it is missing")
    make(parser.parse_args(arguments).folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
