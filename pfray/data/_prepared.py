"""Shards on this machine, as tables that every process maps into its memory: any image by its index."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pfray.data._parquet import quiet
from pfray.data._shards import Shards
from pfray.data._track import track
from pfray.errors import DataError, first_line
from pfray.utils import cache


@dataclass(frozen=True)
class Prepared:
    """Images of ``shards``, which the ``datasets`` library writes once, uncompressed, into the cache folder.

    What travels to a worker is the shards' paths; a worker on another machine prepares its own.
    """

    shards: Shards

    def __len__(self) -> int:
        return len(self.shards)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.shards,)

    def labels(self) -> np.ndarray:
        """Class numbers ``(M,)``, int64. Raises DataError where one is missing."""
        column = self._table.data.column(self.shards.label)
        where = f"{self.shards.files[0]}: column {self.shards.label} of these shards"
        if not pa.types.is_integer(column.type):
            raise DataError(f"{where} holds {column.type}, no class numbers. Remedy: whole numbers from 0 on")
        if column.null_count:
            raise DataError(f"{where} holds none for {column.null_count} of {len(column)} images. Remedy: a class "
                            "number for each")
        return column.to_numpy().astype(np.int64)

    def read(self, index: int) -> tuple[bytes, int, str]:
        """(an encoded image, its label, what it is called). Raises DataError where there is none."""
        row = self._table[index]
        image, label = row[self.shards.image], row[self.shards.label]
        shard = int(np.searchsorted(self._ends, index, "right"))
        name = f"{self.shards.files[shard]}, image {index - int(self._ends[shard]) + self.shards.lengths[shard]}"
        if image is None:
            raise DataError(f"{name}: the sample has no {self.shards.image}. Remedy: shards whose samples all have one")
        if image["bytes"] is None:
            raise DataError(f"{name}: the shard does not hold the image itself. Remedy: store the files' bytes")
        return image["bytes"], label, name

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.shards.lengths)

    @cached_property
    def _table(self) -> Any:
        import datasets

        shards, folder = self.shards, cache.cache_dir() / "datasets"
        columns = {"columns": [shards.image, shards.label]} if shards.form == "parquet" else {}
        parts = []
        with quiet():
            # One by one, so that progress shows, and an interrupted preparation goes on where it was.
            for file, length in zip(track(shards.files, len(shards.files), "preparing shards"), shards.lengths,
                                    strict=True):  # fmt: skip
                try:
                    part = datasets.load_dataset(
                        shards.form, data_files=[file], split="train", cache_dir=str(folder), **columns
                    )
                    # Of tars only the first one was looked at.
                    if not {shards.image, shards.label} <= {*part.column_names}:
                        found = ", ".join(name for name in part.column_names if not name.startswith("__"))
                        raise DataError(f"{file}: its columns are {found}, and those of {shards.files[0]} "
                                        f"{shards.image} and {shards.label}. Remedy: shards of one data set")
                    part = part.select_columns([shards.image, shards.label])
                    parts.append(part.cast_column(shards.image, datasets.Image(decode=False)))
                except DataError:
                    raise
                except Exception as error:  # pyarrow, tarfile and the library raise many types
                    # The library's own says no more than that its preparation failed.
                    cause = error.__cause__ or error
                    raise DataError(f"{file}: the shard cannot be prepared in {folder} ({first_line(cause)}). Remedy: "
                                    "copy the shard again, or free space for a copy of it there") from error
                if len(part) != length:
                    raise DataError(f"{file}: the shard has {len(part)} samples, and had {length} when the run began. "
                                    "Remedy: a new run")
            return datasets.concatenate_datasets(parts)
