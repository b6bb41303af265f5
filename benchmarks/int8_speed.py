"""Effect of 8 bits on the .tflite: latency against the float file, timed alternately, bytes, and test accuracy.

ResNet-56 on CIFAR-10 with its weights, and MobileNet-v1 for 32x32 images, untrained, because its weights do not affect
its speed. Both are quantized after training without further steps (``litert_quant`` and no epochs), or with
``--epochs`` of quantization-aware training.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import job, needed

NAME = "int8_speed"
FOLDER = ROOT / "runs" / NAME
FASTER, SMALLER, LOST, LOST_TRAINED = ">= 2.5", "<= 0.30", "<= 0.3", "<= 0.1"
# Without batch statistics a network takes less than it was trained with: with soft labels a ResNet-20 diverges at 0.02.
TRAINING = {"lr": 0.003, "batch_size": 128, "warmup_epochs": 0}
DISTILL = {"weight": 0.9, "temperature": 4.0}


def export(name: str, model: Any, work: Any, epochs: int = 0) -> tuple[Path, Path]:
    """(the float .tflite, the int8 one). epochs: of quantization-aware training, with the teacher's soft labels."""
    from learners.litert_quant import BITS, LitertQuant
    from pfray.export.tflite import convert
    from pfray.nn.modes import place
    from pfray.task import example_input

    task = work.task
    FOLDER.mkdir(parents=True, exist_ok=True)
    paths = FOLDER / f"{name}-float.tflite", FOLDER / f"{name}-int8.tflite"
    model, example = place(copy.deepcopy(model), "cpu").eval(), example_input(task)
    algorithm = LitertQuant(model, task)
    quantized: Any = algorithm.finish(algorithm.space().uniform({"bits": BITS})).model
    print(f"{name}: left float {', '.join(quantized.float_layers()) or 'nothing'}", flush=True)
    if epochs:
        _train(name, quantized, work, epochs)
    for each, path in zip((model, quantized), paths, strict=True):
        convert.export(each, example, path)
    return paths


def _train(name: str, model: Any, work: Any, epochs: int) -> None:
    """With the rounding in place; prints the loss after each epoch."""
    from pfray.training.loop import fit
    from pfray.training.settings import Distill, Training

    started = time.time()

    def show(epoch: int, loss: float, optimizer: Any) -> None:
        print(f"  {name}: epoch {epoch}, loss {loss:.4f}, {time.time() - started:.0f} s", flush=True)

    training = Training(epochs=epochs, **TRAINING)
    fit(model, work.task, training, seed=0, teacher=work.teacher, distill=Distill(**DISTILL), on_epoch=show)
    model.eval()


def accuracy(path: Path, task: Any) -> float:
    """On the whole test split, by the interpreter."""
    import torch

    from pfray.measure import interpreter

    outputs = torch.from_numpy(interpreter.predict(path, task.normalize(task.test.inputs).numpy())[0])
    return task.score(outputs, task.test.targets).mean().item()


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, [path for name in ("resnet20", "resnet56") for path in needed(name)], "put the data there"):
        return SKIPPED
    from pfray import bench
    from pfray.measure.evaluation import evaluate
    from pfray.models.mobilenet import mobilenet_v1

    for name in options.models:
        trained = name != "mobilenet_v1"
        work = job(name if trained else "resnet20")
        model = work.teacher if trained else mobilenet_v1()
        paths = export(name, model, work, options.epochs if trained else 0)
        sizes = [path.stat().st_size for path in paths]
        for threads in (1, 2):
            before, after = bench.latency_ms(paths, threads=threads)
            print(f"{name}, {threads} threads: {before:.3f} ms in float, {after:.3f} ms in int8", flush=True)
            close(f"{NAME}_{name}_{threads}", before / after, "times faster than float", FASTER)
        close(f"{NAME}_{name}_size", sizes[1] / sizes[0], "of the float file's bytes", SMALLER)
        if trained:
            whole, own = evaluate(model, work.task, work.task.test).accuracy, accuracy(paths[1], work.task)
            print(f"{name}: {100 * whole:.2f} % in PyTorch, {100 * own:.2f} % in the int8 file")
            close(f"{NAME}_{name}_lost", 100 * (whole - own), "points of test accuracy lost",
                  LOST_TRAINED if options.epochs else LOST)  # fmt: skip
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(NAME, "Measure the int8 .tflite against the float one.")
    models = ("resnet20", "resnet56", "mobilenet_v1")
    parser.add_argument("--models", nargs="+", default=list(models), choices=models)
    parser.add_argument("--epochs", type=int, default=0, help="of quantization-aware training (about 5 minutes each "
                        "for ResNet-56)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
