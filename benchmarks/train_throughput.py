"""Images per second of ``pfray.training.loop.fit`` against a bare PyTorch loop of the same precision, memory format and
batch.

Both train the same model on the same uint8 tensors in memory, with the same augmentation, SGD and cosine schedule,
alternating in one process (A B A B ...), after a warm-up of each. The bare loop is written for this one job: no
distillation, hooks, shards or checkpoints. On a GPU it keeps the images there, as a user would.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parser import make_parser
from benchmarks.result import DATA, SKIPPED, close, is_missing

if TYPE_CHECKING:
    import torch

    from pfray.task import Task
    from pfray.training.settings import Training

NAME = "train_throughput"
GOAL = ">= 0.95"


def bare_loop(model: torch.nn.Module, task: Task, training: Training, precision: str, steps: int) -> None:
    import torch
    from torch.nn import functional as F

    assert task.augment is not None
    device = next(model.parameters()).device
    train = task.train.head(None)
    images, labels = train.inputs.to(device), train.targets.to(device)
    mean = torch.tensor(task.mean, device=device).view(1, -1, 1, 1) * 255
    std = torch.tensor(task.std, device=device).view(1, -1, 1, 1) * 255
    optimizer = torch.optim.SGD(
        model.parameters(), training.lr, training.momentum, weight_decay=training.weight_decay, nesterov=True
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator(device)
    model.train()
    order = torch.randperm(len(images), device=device)
    for step in range(steps):
        batch = order[torch.arange(training.batch_size, device=device).add(step * training.batch_size) % len(images)]
        x = task.augment(images[batch], generator).to(torch.float32, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model((x - mean) / std), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def images_per_second(loop: Callable[[int], None], steps: int, batch_size: int, wait: Callable[[], None]) -> float:
    """Images that ``loop(steps)`` trains on in a second. wait: returns when the device has done its work."""
    wait()
    start = time.perf_counter()
    loop(steps)
    wait()
    return steps * batch_size / (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.model == "resnet20" and is_missing(NAME, [options.data], "give --data, or --model mobilenet_v1"):
        return SKIPPED
    import torch

    from pfray.data import cifar10, digits
    from pfray.models.mobilenet import mobilenet_v1
    from pfray.models.resnet import resnet20
    from pfray.nn.build import required_outputs
    from pfray.nn.modes import place
    from pfray.training.loop import choose_precision, fit
    from pfray.training.settings import Training

    on_cifar = options.model == "resnet20"
    task = cifar10.build(str(options.data)) if on_cifar else digits.build()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make = resnet20 if on_cifar else mobilenet_v1

    def fresh() -> torch.nn.Module:
        torch.manual_seed(0)
        return place(make(required_outputs(task), task.input_shape[0]), device)

    ours, bare = fresh(), fresh()
    precision = choose_precision(ours, device, options.precision)
    training = Training(lr=0.01, batch_size=options.batch_size, warmup_epochs=0)

    def run_fit(steps: int) -> None:
        fit(ours, task, training, seed=0, precision=precision, steps=steps)

    def run_bare(steps: int) -> None:
        bare_loop(bare, task, training, precision, steps)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    print(
        f"{options.model} on {task.name}, batch {options.batch_size}, {precision}, {device}, "
        f"{torch.get_num_threads()} threads, {options.rounds} rounds of {options.steps} steps each by turns"
    )
    loops = {"fit": run_fit, "bare loop": run_bare}
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(-1, options.rounds):
        for name, loop in loops.items():
            rate = images_per_second(loop, options.steps, options.batch_size, wait)
            if turn >= 0:
                rates[name].append(rate)
    for name, values in rates.items():
        print(f"{name:>10}: median {median(values):7.1f} images/s, {min(values):.1f} .. {max(values):.1f}")
    pairs = [a / b for a, b in zip(*rates.values(), strict=True)]
    print(f"   by pair: median {median(pairs):.3f}, {min(pairs):.3f} .. {max(pairs):.3f}")
    ratio = median(rates["fit"]) / median(rates["bare loop"])
    close(f"{NAME}_{options.model}", ratio, "images/s of fit over those of a bare loop", GOAL)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(NAME, "Compare the speed of pfray's training loop with that of a bare PyTorch loop.")
    parser.add_argument(
        "--model",
        choices=("resnet20", "mobilenet_v1"),
        default="resnet20",
        help="resnet20 trains on CIFAR-10, mobilenet_v1 on the embedded digits",
    )
    parser.add_argument("--data", type=Path, default=DATA / "cifar10-jpeg", help="folder of CIFAR-10")
    parser.add_argument("--precision", choices=("auto", "bf16", "float32"), default="auto", help="of both loops")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a step")
    parser.add_argument("--steps", type=int, default=25, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of each loop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
