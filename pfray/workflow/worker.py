"""One worker of a training, alone or among others: trains a candidate's model and writes a line of its curve an epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfray.data._stream import Stream
from pfray.learner.base import Compressed
from pfray.learner.build import Weights, compress_candidate, rebuild_candidate, with_weights
from pfray.learner.context import Candidate, Context, with_values
from pfray.nn.modes import place
from pfray.task import Task
from pfray.training.averaging import average_of
from pfray.training.comm_hooks import distribute
from pfray.training.hooks import StatefulHook
from pfray.training.loop import Shard, choose_precision, fit
from pfray.training.pace import Pace
from pfray.training.settings import Distributed
from pfray.workflow.curve import add_line, read_curve, write_running


@dataclass(frozen=True)
class TrainingSpec:
    """One training.

    start: weights from the algorithm's ``finish``; None if ``compress`` makes the model.
    before: of an algorithm without ``finish`` the trained weights of a milder plan, which ``compress`` goes on from.
    folder: of the curve. made_from: key of the checkpoints; one with another key is not continued.
    distributed: exchange of gradients between workers. views: folder for ``distill.cached_views``.
    """

    candidate: Candidate
    context: Context
    folder: Path
    start: Weights | None = None
    before: Weights | None = None
    made_from: str = ""
    distributed: Distributed = field(default_factory=Distributed)
    views: Path | None = None


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
        begun = context if spec.before is None else replace(context, earlier=with_weights(context.model, spec.before))
        start = compress_candidate(candidate, begun, device, steps)
    else:
        start = Compressed(rebuild_candidate(candidate, context, spec.start, device))
    model, hook = start.model, start.hook
    average = average_of(model, hook, training.average, steps)
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        if isinstance(hook, StatefulHook):
            hook.load_state_dict(checkpoint["hook"])
        if average is not None:
            average.load_state_dict(checkpoint["average"])
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
    sent_bytes, pace, task = 0, Pace(), _read_as_before(context.task, checkpoint)
    read = task.train
    loaders = {"loaders": read.used_loaders(device.type == "cuda", shard.world)} if isinstance(read, Stream) else {}

    first = 0 if checkpoint is None else checkpoint["epoch"]

    def tell() -> None:
        share = pace.steps / read.steps(training.batch_size)
        if share < 1:  # the whole epoch is told with its loss
            write_running(spec.folder, {"done": first + share, **pace.epoch(shard.world), **loaders})

    if shard.rank == 0:
        pace.tell = tell

    def keep(epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        nonlocal sent_bytes, first
        seen = pace.epoch(shard.world)
        state = {
            "model": model.state_dict(),
            "epoch": epoch,
            "loss": loss,
            "made_from": spec.made_from,
            "optimizer": optimizer.state_dict(),
            "hook": hook.state_dict() if isinstance(hook, StatefulHook) else {},
            "average": {} if average is None else average.state_dict(),
            "exchange": {} if exchange is None else exchange.state_dict(),
            **loaders,
        }
        save(state)
        if shard.rank == 0:
            sent = {} if exchange is None else {"sent_bytes": exchange.sent_bytes - sent_bytes}
            add_line(spec.folder, epoch=epoch, loss=loss, **sent, **seen, **loaders)
        sent_bytes = 0 if exchange is None else exchange.sent_bytes
        first = epoch

    fit(
        trained,
        task,
        training,
        seed=context.seed,
        precision=choose_precision(model, device, context.precision),
        teacher=place(context.teacher, device) if candidate.distill.weight or candidate.distill.features else None,
        distill=candidate.distill,
        hook=hook,
        start_epoch=first,
        optimizer_state=None if checkpoint is None else checkpoint["optimizer"],
        on_epoch=keep,
        shard=shard,
        pace=pace,
        average=average,
        views=spec.views,
    )
    for remark in task.remarks(shard.world):
        if shard.rank == 0:
            add_line(spec.folder, note=remark)
    return model


def _read_as_before(task: Task, checkpoint: dict[str, Any] | None) -> Task:
    """The task, whose training data are read ahead by as many processes as in the epochs before the checkpoint: where
    each reads shards of its own, their order depends on the number, which by default is that of the machine."""
    read = task.train
    if checkpoint is None or not isinstance(read, Stream) or read.indices is not None or read.loaders is not None:
        return task
    return replace(task, train=replace(read, loaders=checkpoint.get("loaders")))
