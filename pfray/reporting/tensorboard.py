"""TensorBoard events of a run: one writer for the whole run, in the driver."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tensorboardX import SummaryWriter

from pfray.reporting.observers import Observer, SearchState

if TYPE_CHECKING:
    from pfray.measure.evaluation import Measurement


class TensorBoard(Observer):
    """Writes scalars under ``search/``, ``train/`` and ``final/`` into ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.writer = SummaryWriter(str(folder))

    def trial_finished(self, search: SearchState) -> None:
        if search.stage != "search":
            return
        newest, best = search.records[-1], search.best
        if newest["score"] is not None:
            self.writer.add_scalar("search/score", newest["score"], newest["trial"])
        if best is not None:
            self.writer.add_scalar("search/best", best["score"], newest["trial"])
        self.writer.flush()

    def epoch_done(self, training: str, epoch: int, loss: float) -> None:
        self.writer.add_scalar(f"train/{training}/loss", loss, epoch)
        self.writer.flush()

    def measured(self, model: str, measurement: Measurement) -> None:
        for key, value in measurement.to_dict().items():
            if value is not None:
                self.writer.add_scalar(f"final/{model}/{key}", value, 0)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
