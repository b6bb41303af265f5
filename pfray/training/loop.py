"""The one training loop: mixed precision, channels_last, schedules, distillation, learner hooks, averages, sharding."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from pfray.errors import TrainingFailed
from pfray.nn.inputs import count, floats
from pfray.nn.modes import autocast, forward
from pfray.task import Task
from pfray.training.averaging import Average, average_of
from pfray.training.batch_norm import batch_norms
from pfray.training.distillation import Distillation
from pfray.training.hooks import Hook
from pfray.training.pace import Pace
from pfray.training.settings import Distill, Training


@dataclass(frozen=True)
class Shard:
    """This process's part of every global batch."""

    rank: int = 0
    world: int = 1


class EpochReport(Protocol):
    def __call__(self, epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        """Called after each epoch with the epochs done, the mean training loss, and the optimizer for a checkpoint."""


def choose_precision(model: nn.Module, device: torch.device, wish: str = "auto") -> str:
    """``bf16`` if training in it is faster, else ``float32``, by a fixed rule, so that runs repeat exactly.

    On processors with bf16 instructions dense convolutions train about 1.6x faster in bf16, and depthwise ones, for
    which bf16 kernels are missing, 2.3x slower (docs/results.md, precision).
    """
    if wish != "auto":
        return wish
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in model.modules())
    has_bf16 = bool(torch.cpu._is_avx512_bf16_supported())
    return "bf16" if has_bf16 and not depthwise else "float32"


def fit(
    model: nn.Module,
    task: Task,
    training: Training,
    *,
    seed: int,
    precision: str = "float32",
    teacher: nn.Module | None = None,
    distill: Distill | None = None,
    hook: Hook | None = None,
    steps: int | None = None,
    start_epoch: int = 0,
    optimizer_state: dict | None = None,
    on_epoch: EpochReport | None = None,
    shard: Shard | None = None,
    pace: Pace | None = None,
    average: Average | None = None,
    views: Path | None = None,
) -> None:
    """Train ``model`` in place, on the device that holds it.

    The batches depend on ``seed`` and the epoch alone, so a training resumed from ``start_epoch`` and
    ``optimizer_state`` sees the same ones. steps: total optimizer steps, also of the schedule, in place of all epochs.
    pace: watches the training, for who wants to know. average: of the weights, by ``training.average`` (None: a new
    one); the model has it when the last epoch is reported. views: folder for ``distill.cached_views``.
    Raises TrainingFailed if the loss is not finite, UnsupportedModel if ``distill.features`` finds no stage.
    """
    shard = shard or Shard()
    device = next(model.parameters()).device
    task = task.on(device)
    per_epoch = task.train.steps(training.batch_size)
    total = training.epochs * per_epoch if steps is None else steps
    warmup = min(training.warmup_epochs * per_epoch, total / 5)
    distillation = Distillation(
        model, task, teacher, distill, total=total, seed=seed, precision=precision, batch_size=training.batch_size,
        rank=shard.rank, world=shard.world, views=views,
    )  # fmt: skip
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
    )
    distillation.join(optimizer)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    model.train()
    step = start_epoch * per_epoch
    if hook is not None:
        hook(step)
    epochs = range(start_epoch, math.ceil(total / per_epoch))
    seeds = [mixed_seed(seed, distillation.view(epoch)) for epoch in epochs]
    pace = pace or Pace()
    average = average or average_of(model, hook, training.average, total)
    whole = task.train.epochs(training.batch_size, seeds, shard.rank, shard.world, device.type == "cuda")
    # The processes that read ahead end here, too if the training fails.
    with closing(whole) as read:
        for epoch, batches in enumerate(pace.watched(read), start_epoch):
            distillation.begin(epoch)
            noise = torch.Generator().manual_seed(mixed_seed(seed, distillation.view(epoch), shard.rank + 1))
            loss_sum, done = torch.zeros((), device=device), 0
            taken = islice(pace.watched(batches), min(per_epoch, total - step))
            for inputs, targets in task.training_batches(taken, noise, device):
                for group in optimizer.param_groups:
                    group["lr"] = training.lr * schedule(step, total, warmup, training.schedule)
                with autocast(device, precision), distillation.watched(step):
                    outputs = floats(task.select(forward(model, inputs)))
                loss = distillation.loss(inputs, outputs, targets, step)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                distillation.average_gradients(step)
                optimizer.step()
                step += 1
                done += 1
                pace.trained(count(inputs))
                if hook is not None:
                    hook(step)
                if average is not None:
                    average.update(step)
                loss_sum += loss.detach()
            distillation.end()
            if shard.world > 1:
                torch.distributed.all_reduce(loss_sum)
            mean = loss_sum.item() / done / shard.world
            if not math.isfinite(mean):
                raise TrainingFailed(
                    f"the loss became {mean} in epoch {epoch + 1}. Remedy: an lr below {training.lr:g}, "
                    "or a longer warmup_epochs"
                )
            if average is not None and step >= total:
                average.finish(task, precision)
            if on_epoch is not None:
                frozen = [norm for norm in batch_norms(model) if not norm.training]  # by the hook
                on_epoch(epoch + 1, mean, optimizer)
                model.train()
                for norm in frozen:
                    norm.eval()
            if step >= total:
                break  # to ask for another epoch would read the rest of one that steps cut short
            pace.begin()


def schedule(step: int, total: int, warmup: float, shape: str = "cosine") -> float:
    """Factor on the learning rate at ``step`` of ``total``: a linear rise over ``warmup`` steps, then a fall to 0.

    shape: of the fall, half a period of a ``cosine`` or ``linear``.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1.0, total - warmup)
    return 1 - done if shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def mixed_seed(*parts: int) -> int:
    """One seed from several numbers, such as seed, epoch and rank, whose random streams are unrelated."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 1_000_003 + part + 0x9E3779B9) % 2**62
    return mixed
