"""Loss of a training step beside a teacher: soft labels (Hinton et al. 2015) and features (``features.py``)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pfray.nn.inputs import Inputs, floats
from pfray.nn.modes import autocast, evaluation_mode, forward
from pfray.task import Task, example_input
from pfray.training.cached_views import CachedViews
from pfray.training.features import Features, share_left
from pfray.training.settings import Distill


class Distillation:
    """The loss of each step of one training, of which it is told the epochs and steps in order:

        (1 - w) * task loss + w * soft loss + v * (1 - 2 * step / total) * error of the features,

    with w = ``weight`` and v = ``features`` of the settings, the last term for the first half of the ``total`` steps.
    Without a teacher it is the task loss.

    seed: of the adapters. batch_size: of all workers. rank, world: of this worker. views: folder of the soft labels for
    ``cached_views``; None to compute them in every step. Raises UnsupportedModel if the features find no stage.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        teacher: nn.Module | None,
        settings: Distill | None,
        *,
        total: int,
        seed: int,
        precision: str,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        views: Path | None = None,
    ) -> None:
        self.task, self.teacher, self.settings = task, teacher, settings or Distill()
        self.total, self.precision, self.world = total, precision, world
        self.student = model.module if isinstance(model, DistributedDataParallel) else model
        self.device = next(model.parameters()).device
        self.weight = self.settings.weight if teacher is not None else 0.0
        self.features: Features | None = None
        self.views: CachedViews | None = None
        if teacher is not None and self.settings.features:
            self.features = Features(self.student, teacher, example_input(task, self.device), seed)
        if teacher is not None and self.weight and self.settings.cached_views and views is not None:
            self.views = CachedViews(
                views, teacher, task, batch_size=batch_size // world, precision=precision, rank=rank, world=world
            )
        self.own: list[Tensor] = []

    def join(self, optimizer: torch.optim.Optimizer) -> None:
        """Train the adapters of the features with the model."""
        if self.features is not None:
            self.features.join(optimizer)

    def view(self, epoch: int) -> int:
        """The epoch whose batches ``epoch`` repeats: itself, but for cached views."""
        return epoch if self.views is None else epoch % self.settings.cached_views

    def begin(self, epoch: int) -> None:
        """Begin an epoch."""
        if self.views is not None:
            self.views.begin(self.view(epoch))

    def end(self) -> None:
        """End an epoch. Raises StorageError."""
        if self.views is not None:
            self.views.end()

    def _share(self, step: int) -> float:
        """Weight of the features at ``step``."""
        return 0.0 if self.features is None else self.settings.features * share_left(step, self.total)

    def watched(self, step: int) -> AbstractContextManager[Any]:
        """A block with the student's forward pass of ``step``, whose features are kept."""
        if self.features is None or not self._share(step):
            return nullcontext()
        return self.features.of(self.student, self.own)

    def loss(self, inputs: Inputs, outputs: Any, targets: Any, step: int) -> Tensor:
        """Loss of a batch. outputs: what the student gave within ``watched``, selected, in float32."""
        loss = self.task.loss(outputs, targets)
        share = self._share(step)
        if not (share or self.weight):
            return loss
        theirs: list[Tensor] = []

        def teacher_outputs() -> Any:
            assert self.teacher is not None
            watching = self.features.of(self.teacher, theirs) if self.features and share else nullcontext()
            with evaluation_mode(self.teacher), torch.no_grad(), autocast(self.device, self.precision), watching:
                return floats(self.task.select(forward(self.teacher, inputs)))

        if self.weight:
            labels = teacher_outputs() if self.views is None else self.views.labels(inputs, teacher_outputs)
            soft = self.task.soft_loss(outputs, labels, self.settings.temperature)
            loss = (1 - self.weight) * loss + self.weight * soft
        if share:
            if not theirs:  # the soft labels were read
                teacher_outputs()
            assert self.features is not None
            loss = loss + share * self.features.error(self.own, theirs)
            self.own.clear()
        return loss

    def average_gradients(self, step: int) -> None:
        """Exchange the gradients of what no DistributedDataParallel holds, after the backward pass of ``step``."""
        if self.world > 1 and self.features is not None and self._share(step):
            self.features.average_gradients()
