"""One worker of a training, alone or among others: trains a candidate's model and writes a line of its curve an epoch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfray.data._stream import Stream
from pfray.learner.base import Compressed
from pfray.learner.build import Weights, compress_candidate, rebuild_candidate
from pfray.learner.context import Candidate, Context, with_values
from pfray.nn.modes import place
from pfray.storage.run_folder import curve_of
from pfray.training.comm_hooks import distribute
from pfray.training.loop import Shard, StatefulHook, choose_precision, fit
from pfray.training.pace import Pace
from pfray.training.settings import Distributed
from pfray.utils.files import append_line, read_records


@dataclass(frozen=True)
class TrainingSpec:
    """One training.

    start: weights from the algorithm's ``finish``; None if ``compress`` makes the model.
    folder: of the curve. made_from: key of the checkpoints; one with another key is not continued.
    distributed: exchange of gradients between workers.
    """

    candidate: Candidate
    context: Context
    folder: Path
    start: Weights | None = None
    made_from: str = ""
    distributed: Distributed = field(default_factory=Distributed)


def train_candidate(
    spec: TrainingSpec,
    shard: Shard,
    device: torch.device,
    checkpoint: dict[str, Any] | None,
    save: Callable[[dict[str, Any]], None],
) -> nn.Module:
    """The candidate's model after all epochs. checkpoint: a saved state to continue from.

    save(state) is called after each epoch. ``state["exchange"]`` is this worker's own, and empty if it has nothing to
    remember; the rest is the same for all workers. Raises TrainingFailed.
    """
    candidate, context, training = spec.candidate, spec.context, spec.candidate.training
    torch.manual_seed(context.seed)
    steps = training.epochs * context.task.train.steps(training.batch_size)
    if spec.start is None:
        start = compress_candidate(candidate, context, device, steps)
    else:
        start = Compressed(rebuild_candidate(candidate, context, spec.start, device))
    model, hook = start.model, start.hook
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        if isinstance(hook, StatefulHook):
            hook.load_state_dict(checkpoint["hook"])
        # A crash may have come between an epoch's state and its line.
        if shard.rank == 0 and all(entry["epoch"] != checkpoint["epoch"] for entry in read_curve(spec.folder)):
            add_line(spec.folder, epoch=checkpoint["epoch"], loss=checkpoint["loss"])
    trained, exchange = model, None
    if shard.world > 1:
        trained, exchange = distribute(model, spec.distributed, context.seed)
        if checkpoint is not None and checkpoint["exchange"]:
            exchange.load_state_dict(checkpoint["exchange"])
        if spec.distributed.scale_lr:
            training = with_values(training, {"lr": training.lr * shard.world})
    sent_bytes, pace, read = 0, Pace(), context.task.train
    loaders = {"loaders": read.used_loaders(device.type == "cuda", shard.world)} if isinstance(read, Stream) else {}

    def keep(epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        nonlocal sent_bytes
        seen = pace.epoch(shard.world)
        state = {
            "model": model.state_dict(),
            "epoch": epoch,
            "loss": loss,
            "made_from": spec.made_from,
            "optimizer": optimizer.state_dict(),
            "hook": hook.state_dict() if isinstance(hook, StatefulHook) else {},
            "exchange": {} if exchange is None else exchange.state_dict(),
        }
        save(state)
        if shard.rank == 0:
            sent = {} if exchange is None else {"sent_bytes": exchange.sent_bytes - sent_bytes}
            add_line(spec.folder, epoch=epoch, loss=loss, **sent, **seen, **loaders)
        sent_bytes = 0 if exchange is None else exchange.sent_bytes

    fit(
        trained,
        context.task,
        training,
        seed=context.seed,
        precision=choose_precision(model, device, context.precision),
        teacher=place(context.teacher, device) if candidate.distill.weight else None,
        distill=candidate.distill,
        hook=hook,
        start_epoch=0 if checkpoint is None else checkpoint["epoch"],
        optimizer_state=None if checkpoint is None else checkpoint["optimizer"],
        on_epoch=keep,
        shard=shard,
        pace=pace,
    )
    for remark in context.task.remarks(shard.world):
        if shard.rank == 0:
            add_line(spec.folder, note=remark)
    return model


def add_line(folder: Path, **entry: float | str) -> None:
    """Append a line to the curve's file."""
    append_line(curve_of(folder), json.dumps(entry))


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Epoch and loss of each epoch of the training in ``folder``; for an epoch repeated after a crash, the last values.
    """
    return sorted({e["epoch"]: e for e in read_lines(folder, "epoch")}.values(), key=lambda entry: entry["epoch"])


def read_lines(folder: Path, key: str) -> list[dict[str, Any]]:
    """Lines of the curve's file that have ``key``, such as ``epoch``, ``error`` or ``note``, and values of its types.

    A last line that is still being written is left out.
    """
    path = curve_of(folder)
    lines = read_records(path)[0] if path.exists() else []
    types: dict[str, type] = {"epoch": int, "loss": float} if key == "epoch" else {key: str}
    return [entry for entry in lines if all(type(entry.get(name)) is kind for name, kind in types.items())]
