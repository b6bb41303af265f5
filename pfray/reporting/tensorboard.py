"""TensorBoard events of a run: one writer for the whole run, in the driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from pfray.measure.evaluation import Measurement


class Events:
    """Scalars under ``search/``, ``train/`` and ``final/``; closed by ``close``."""

    def __init__(self, folder: Path) -> None:
        self.writer = SummaryWriter(str(folder))

    def trial(self, record: dict[str, Any], best: float | None) -> None:
        if record["score"] is not None:
            self.writer.add_scalar("search/score", record["score"], record["trial"])
        if best is not None:
            self.writer.add_scalar("search/best", best, record["trial"])
        self.writer.flush()

    def epoch(self, name: str, epoch: int, loss: float) -> None:
        self.writer.add_scalar(f"train/{name}/loss", loss, epoch)
        self.writer.flush()

    def final(self, name: str, measurement: Measurement) -> None:
        for key, value in measurement.to_dict().items():
            if value is not None:
                self.writer.add_scalar(f"final/{name}/{key}", value, 0)

    def close(self) -> None:
        self.writer.close()
