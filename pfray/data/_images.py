"""Images by index, in class folders or in shards on this machine, as a data set; each is decoded when it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from pfray.data._crops import Crop
from pfray.data._damage import Sample, decoded


class Rows(Protocol):
    """Encoded images by index, small to pickle: ``ClassFolders`` or ``Prepared``."""

    def __len__(self) -> int: ...

    def labels(self) -> np.ndarray:
        """Class numbers ``(M,)``, int64."""

    def read(self, index: int) -> tuple[bytes, int, str]:
        """(an encoded image, its label, what it is called)."""


@dataclass(frozen=True, eq=False)
class Images(Dataset[Any]):
    """Samples of ``rows``. numbers: of the classes, by label, for a part of them; None for all as they are."""

    rows: Rows
    crop: Crop
    numbers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        encoded, label, name = self.rows.read(index)
        return decoded(self.crop, encoded, label if self.numbers is None else self.numbers[label], name)
