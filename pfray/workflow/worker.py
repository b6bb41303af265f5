"""What one worker of a training does, alone or among others: train a candidate's model, and write its curve, a line
after each epoch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfray.learner.base import Compressed
from pfray.learner.build import Weights, compress_candidate, rebuild_candidate
from pfray.learner.context import Candidate, Context, with_values
from pfray.nn.modes import place
from pfray.storage.run_folder import curve_of
from pfray.training.comm_hooks import distribute
from pfray.training.loop import Shard, StatefulHook, choose_precision, fit, steps_per_epoch
from pfray.training.settings import Distributed
from pfray.utils.files import append_line, read_records


@dataclass(frozen=True)
class Work:
    """One training.

    start: the weights that the algorithm's ``finish`` gave; None where ``compress`` makes the model.
    folder: of the curve. made_from: what a checkpoint is kept under, and gone on from.
    distributed: how several workers exchange gradients.
    """

    candidate: Candidate
    context: Context
    folder: Path
    start: Weights | None = None
    made_from: str = ""
    distributed: Distributed = field(default_factory=Distributed)


def train_candidate(
    work: Work,
    shard: Shard,
    device: torch.device,
    known: dict[str, Any] | None,
    save: Callable[[dict[str, Any]], None],
) -> nn.Module:
    """The candidate's model after all epochs; continued from ``known``, where that is a state that was saved.

    save(state), after each epoch: ``exchange`` of it is this worker's own, and empty where it has nothing to remember;
    the rest is the same for all. Raises TrainingFailed.
    """
    candidate, context, training = work.candidate, work.context, work.candidate.training
    torch.manual_seed(context.seed)
    steps = training.epochs * steps_per_epoch(context.task.train, training.batch_size)
    if work.start is None:
        begun = compress_candidate(candidate, context, device, steps)
    else:
        begun = Compressed(rebuild_candidate(candidate, context, work.start, device))
    model, hook = begun.model, begun.hook
    if known is not None:
        model.load_state_dict(known["model"])
        if isinstance(hook, StatefulHook):
            hook.load_state_dict(known["hook"])
        # A fault may have come between an epoch's state and its line.
        if shard.rank == 0 and all(entry["epoch"] != known["epoch"] for entry in read_curve(work.folder)):
            add_line(work.folder, epoch=known["epoch"], loss=known["loss"])
    trained, exchange = model, None
    if shard.world > 1:
        trained, exchange = distribute(model, work.distributed, context.seed)
        if known is not None and known["exchange"]:
            exchange.load_state_dict(known["exchange"])
        if work.distributed.scale_lr:
            training = with_values(training, {"lr": training.lr * shard.world})
    sent_bytes = 0

    def keep(epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        nonlocal sent_bytes
        state = {
            "model": model.state_dict(),
            "epoch": epoch,
            "loss": loss,
            "made_from": work.made_from,
            "optimizer": optimizer.state_dict(),
            "hook": hook.state_dict() if isinstance(hook, StatefulHook) else {},
            "exchange": {} if exchange is None else exchange.state_dict(),
        }
        save(state)
        if shard.rank == 0:
            sent = {} if exchange is None else {"sent_bytes": exchange.sent_bytes - sent_bytes}
            add_line(work.folder, epoch=epoch, loss=loss, **sent)
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
        start_epoch=0 if known is None else known["epoch"],
        optimizer_state=None if known is None else known["optimizer"],
        on_epoch=keep,
        shard=shard,
    )
    return model


def add_line(folder: Path, **entry: float | str) -> None:
    """To the curve's file."""
    append_line(curve_of(folder), json.dumps(entry))


def read_curve(folder: Path) -> list[dict[str, float]]:
    """(epoch, loss) of the training in ``folder`` so far; of an epoch run again after a fault, the last time."""
    return sorted({e["epoch"]: e for e in read_lines(folder, "epoch")}.values(), key=lambda entry: entry["epoch"])


def read_lines(folder: Path, key: str) -> list[dict[str, Any]]:
    """The lines of the curve's file that have ``key``, ``epoch`` or ``error``, with values of the right types; the last
    one may still be in writing."""
    path = curve_of(folder)
    lines = read_records(path)[0] if path.exists() else []
    types: dict[str, type] = {"error": str} if key == "error" else {"epoch": int, "loss": float}
    return [entry for entry in lines if all(type(entry.get(name)) is kind for name, kind in types.items())]
