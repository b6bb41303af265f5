"""Training and reading of a folder of JPEG files against a bare PyTorch loop and a torch ``DataLoader``.

Both sides read the same data set, with the same random crops and as many processes that read ahead, and train the same
small network, alternating in one process (A B A B ...). Also measured: the memory of an epoch over many images against
one over few, in processes of their own with those that read ahead, of reading alone and with the training; and the
bytes that a trial is sent.

The images are noise of several scales, 256 pixels wide, made in a temporary folder; each file has several names.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.result import ROOT, close

if TYPE_CHECKING:
    import torch

    from pfray.task import Task

NAME = "input_pipeline"
# Images with contents of their own; the others are further names of theirs.
DISTINCT = 500
CLASSES = 4
# Validation images.
HELD = 500
# Options that make this module read one epoch and end.
ONE_EPOCH = "--one-epoch"


def write_images(folder: Path, count: int, pixels: int) -> Path:
    """A folder of ``count`` training images and ``HELD`` for validation and test, in class folders."""
    import numpy as np
    from PIL import Image

    originals = folder.parent / "originals"
    if not originals.exists():
        originals.mkdir()
        random = np.random.default_rng(0)
        for number in range(DISTINCT):
            layers = [
                np.kron(random.integers(0, 256, (pixels // scale, pixels // scale, 3)), np.ones((scale, scale, 1)))
                for scale in (4, 16, 64)
            ]
            image = Image.fromarray(np.mean(layers, 0).astype(np.uint8))
            image.save(originals / f"{number}.jpg", quality=90)
    for split, images in (("train", count), ("val", HELD), ("test", HELD)):
        for label in range(CLASSES):
            (folder / split / f"class_{label}").mkdir(parents=True)
        for number in range(images):
            name = folder / split / f"class_{number % CLASSES}" / f"image_{number:08d}.jpg"
            os.link(originals / f"{number % DISTINCT}.jpg", name)
    return folder


def task_of(folder: Path, size: int, loaders: int) -> Task:
    from pfray.data import imagefolder
    from pfray.data._workers import read_by

    return read_by(imagefolder.build(str(folder), size=size), loaders, 1)[0]


def small_net() -> torch.nn.Module:
    import torch
    from torch import nn

    from pfray.nn.modes import place

    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 7, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, CLASSES)
    return place(nn.Sequential(*layers), "cuda" if torch.cuda.is_available() else "cpu")


def plain_loader(task: Task, batch: int, loaders: int) -> Iterator[Any]:
    """One epoch of torch's ``DataLoader`` on the same data set."""
    import torch
    from torch.utils.data import DataLoader, Subset

    train: Any = task.train
    found = DataLoader(
        Subset(train.dataset, train.indices.tolist()), batch, shuffle=True, num_workers=loaders,
        collate_fn=train.collate, drop_last=True, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    return iter(found)


def bare_loop(model: torch.nn.Module, task: Task, batch: int, loaders: int, steps: int) -> None:
    import torch
    from torch.nn import functional as F

    device = next(model.parameters()).device
    mean = torch.tensor(task.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(task.std, device=device).view(1, -1, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    read = plain_loader(task, batch, loaders)
    for _ in range(steps):
        images, labels = next(read)[:2]
        images = images.to(device, non_blocking=True).float().contiguous(memory_format=torch.channels_last) / 255
        loss = F.cross_entropy(model((images - mean) / std), labels.to(device, non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def measure_speed(options: argparse.Namespace, folder: Path) -> None:
    from pfray.training.loop import fit
    from pfray.training.settings import Training

    batch, loaders, steps = options.batch_size, options.loaders, options.steps
    task = task_of(folder, options.size, loaders)
    training = Training(lr=0.01, batch_size=batch, warmup_epochs=0)
    ours, bare = small_net(), small_net()

    def read_ours() -> None:
        with closing(task.train.epochs(batch, [0])) as epochs:
            for _ in zip(range(steps), next(epochs), strict=False):
                pass

    def read_plain() -> None:
        for _ in zip(range(steps), plain_loader(task, batch, loaders), strict=False):
            pass

    pairs: dict[str, dict[str, Callable[[], None]]] = {
        "train": {
            "fit": lambda: fit(ours, task, training, seed=0, steps=steps),
            "bare loop": lambda: bare_loop(bare, task, batch, loaders, steps),
        },
        "read": {"pfray": read_ours, "DataLoader": read_plain},
    }
    print(f"{steps} steps of {batch} images of {options.pixels} pixels, cropped to {options.size}, {loaders} processes")
    for what, sides in pairs.items():
        rates: dict[str, list[float]] = {name: [] for name in sides}
        costs: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(-1, options.rounds):
            for name, run in sides.items():
                started, processor = time.perf_counter(), processor_seconds()
                run()
                if turn >= 0:
                    rates[name].append(steps * batch / (time.perf_counter() - started))
                    costs[name].append(1000 * (processor_seconds() - processor) / (steps * batch))
        for name in sides:
            print(f"{name:>10}: median {median(rates[name]):6.1f} images/s, {min(rates[name]):.1f} .. "
                  f"{max(rates[name]):.1f}; {median(costs[name]):.2f} ms of processors an image")  # fmt: skip
        own, other = (median(values) for values in rates.values())
        cost, against = (median(values) for values in costs.values())
        print(f"{'':>10}  {against / cost:.3f} by processor time")
        close(f"{NAME}_{what}", own / other, f"images/s of {' over those of a '.join(sides)}", ">= 0.95")


def processor_seconds() -> float:
    """Of this process and of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def one_epoch(what: str, folder: str, size: str, batch: str, loaders: str) -> None:
    """Read one epoch, or train it, for who watches the memory of it. what: read or train."""
    from pfray.training.loop import fit
    from pfray.training.settings import Training

    task = task_of(Path(folder), int(size), int(loaders))
    if what == "train":
        fit(small_net(), task, Training(lr=0.01, batch_size=int(batch), epochs=1, warmup_epochs=0), seed=0)
        return
    with closing(task.train.epochs(int(batch), [0])) as epochs:
        for _ in next(epochs):
            pass


def peak_bytes(what: str, folder: Path, options: argparse.Namespace) -> int:
    """Most memory of the processes of an epoch, looked at every tenth of a second. what: read or train."""
    command = [sys.executable, "-m", f"benchmarks.{NAME}", ONE_EPOCH, what, str(folder), str(options.size),
               str(options.batch_size), str(options.loaders)]  # fmt: skip
    peak = 0
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(own_bytes, family(process.pid))))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{NAME}: an epoch in a process of its own ended with {process.returncode}")
    return peak


def family(process: int) -> list[int]:
    """A process and all that it started, from Linux's ``/proc``; without those that end meanwhile."""
    found = [process]
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            found += [each for child in path.read_text().split() for each in family(int(child))]
    return found


def own_bytes(process: int) -> int:
    """Memory of a process, with its share of the pages that it has in common with those that it started.

    Pages of files, which are libraries and the list of the images, are left out: the system takes them back when it
    needs room, and a process's share of them depends on who else on the machine runs PyTorch.
    """
    found = 0
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                found += 1024 * int(line.split()[1])
    return found


def trial_bytes(folder: Path, options: argparse.Namespace) -> int:
    """Bytes that a trial's worker is sent, pickled as Ray does."""
    from ray import cloudpickle

    from learners.channel_pruned import ChannelPruned
    from pfray.learner.context import Context, Recipe
    from pfray.learner.scoring import Scoring, TrialSpec
    from pfray.reporting.observers import Observers
    from pfray.training.settings import Training
    from pfray.workflow.trials import in_memory

    context = Context(task_of(folder, options.size, options.loaders), small_net().cpu())
    spec = TrialSpec(context, Recipe(ChannelPruned, ChannelPruned.settings_type(), Training()), Scoring())
    return len(cloudpickle.dumps(in_memory(spec, Observers())))


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == [ONE_EPOCH]:
        one_epoch(*given[1:])
        return 0
    options = _parser().parse_args(given)
    with tempfile.TemporaryDirectory() as temporary:
        few, many = (
            write_images(Path(temporary, str(count)), count, options.pixels) for count in (options.few, options.many)
        )
        measure_speed(options, few)
        sent = [trial_bytes(folder, options) for folder in (few, many)]
        print(f"a trial is sent {sent[0]:,} bytes of {options.few:,} images, {sent[1]:,} of {options.many:,}")
        close(f"{NAME}_trial", sent[1] / sent[0], "bytes of many images over those of few", "<= 1.001")
        for what, name in (("read", "memory_read"), ("train", "memory_train")):
            peaks = [peak_bytes(what, folder, options) for folder in (few, many)]
            print(f"to {what} an epoch takes {peaks[0] / 1e6:.0f} MB of {options.few:,} images, "
                  f"{peaks[1] / 1e6:.0f} of {options.many:,}")  # fmt: skip
            close(f"{NAME}_{name}", peaks[1] / peaks[0], f"peak memory to {what} many over that of few", "<= 1.05")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description="Compare training and reading of a folder of images with a bare PyTorch loop and a DataLoader.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--few", type=int, default=2000, help="training images of the speed and of the small epoch")
    parser.add_argument("--many", type=int, default=20_000, help="training images of the large epoch")
    parser.add_argument("--pixels", type=int, default=256, help="width and height of the files' images")
    parser.add_argument("--size", type=int, default=224, help="width and height of the crops")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a step")
    parser.add_argument("--loaders", type=int, default=2, help="processes that read ahead")
    parser.add_argument("--steps", type=int, default=30, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each side")
    return parser


if __name__ == "__main__":
    sys.exit(main())
