"""A training in the benchmark's own process that is continued from its last whole epoch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from pfray.task import Task
    from pfray.training.settings import Training


def fit_on(model: nn.Module, task: Task, training: Training, checkpoint: Path, title: str, **options: Any) -> float:
    """``fit`` in the precision that suits the model, from ``checkpoint`` if it is there. Returns the seconds in all.

    title: of the line that each epoch prints. options: of ``fit``. Whoever keeps the result removes the checkpoint.
    """
    import torch

    from pfray.training.loop import choose_precision, fit
    from pfray.utils.files import replacing

    before: dict[str, Any] = {"epoch": 0, "optimizer": None, "seconds": 0.0}
    if checkpoint.exists():
        before = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(before["model"])
    started = time.time() - before["seconds"]

    def after(epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        seconds = time.time() - started
        print(f"  {title}: epoch {epoch}, loss {loss:.4f}, {seconds:.0f} s", flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "seconds": seconds}
        with replacing(checkpoint) as temporary:
            torch.save(state, temporary)

    if before["epoch"] < training.epochs:
        precision = choose_precision(model, next(model.parameters()).device)
        fit(
            model, task, training, precision=precision, start_epoch=before["epoch"],
            optimizer_state=before["optimizer"], on_epoch=after, **options,
        )  # fmt: skip
    return time.time() - started
