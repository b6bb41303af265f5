"""Shards read from a bucket or the hub while they are needed, in shuffled order for a training."""

from __future__ import annotations

import logging
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset

from pfray.data._crops import Crop
from pfray.data._damage import Sample, decoded
from pfray.data._parquet import quiet
from pfray.data._rows import parquet_rows, tar_samples
from pfray.data._shards import FORMS, Shards
from pfray.errors import DataError, PfrayError, StorageError, first_line
from pfray.utils.url import hidden

# Seconds between the attempts to read on, five minutes in all; the ``datasets`` library and fsspec make their own
# attempts before.
WAITS = (1, 2, 4, 8, 15, 30, 60, 60, 120)


class Streamed(IterableDataset):
    """Samples of ``shards``, which are read anew for each epoch.

    crop: of the images. A training reads the shards in an order that changes with the epoch, several at a time, through
    a buffer of ``buffer`` encoded images that are drawn at random. outputs: classes. data: of the ``datasets`` library,
    which deals out shards to workers and to processes that read ahead.
    """

    def __init__(self, shards: Shards, crop: Crop, buffer: int, outputs: int) -> None:
        self.shards, self.crop, self.buffer, self.outputs = shards, crop, buffer, outputs

    def __len__(self) -> int:
        return len(self.shards)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.shards, self.crop, self.buffer, self.outputs)

    def set_epoch(self, epoch: int) -> None:
        self.data.set_epoch(epoch)

    @cached_property
    def data(self) -> Any:
        import datasets

        shards = self.shards
        columns = {"form": shards.form, "image": shards.image, "label": shards.label, "outputs": self.outputs}
        with quiet():
            rows = datasets.IterableDataset.from_generator(read, gen_kwargs={"files": list(shards.files), **columns})
        if self.crop.training:
            rows = rows.shuffle(seed=0, buffer_size=self.buffer)
        return rows.map(partial(_sample, crop=self.crop), remove_columns=["encoded", "label", "name"])


def _sample(row: dict[str, Any], crop: Crop) -> dict[str, Sample]:
    return {"sample": decoded(crop, row["encoded"], row["label"], row["name"])}


def read(files: Sequence[str], form: str, image: str, label: str, outputs: int) -> Iterator[dict[str, Any]]:
    """Encoded images, labels and names of all samples, shard by shard. Raises DataError, StorageError."""
    for file in files:
        for row, (encoded, number) in enumerate(retried(partial(_rows, file, form, image, label), file)):
            name = f"{file}, image {row}"
            if encoded is None or not isinstance(number, int):
                missing = image if encoded is None else label
                raise DataError(f"{name}: the sample has no {missing}. Remedy: shards whose samples all have {image} "
                                f"and {label}")
            if not 0 <= number < outputs:
                raise DataError(f"{name}: label {number} is out of range; allowed are 0 to {outputs - 1}. Remedy: "
                                "correct the labels, or give data.path another place")
            yield {"encoded": encoded, "label": number, "name": name}


def _rows(file: str, form: str, image: str, label: str, first: int) -> Iterator[tuple[bytes | None, Any]]:
    """(encoded image, label) of each row of a shard from the row ``first`` on, None where one is missing."""
    if form == FORMS[".parquet"]:
        yield from parquet_rows(file, image, label, first)
    for sample in islice(tar_samples(file), first, None) if form == FORMS[".tar"] else ():
        yield sample.get(image), int(sample[label]) if label in sample else None


def retried(rows_from: Callable[[int], Iterator[Any]], name: str) -> Iterator[Any]:
    """All rows of what ``rows_from(first)`` opens; after an error it is opened again, later and later.

    name: for messages. Raises StorageError when no attempt succeeds, DataError for content that cannot be read.
    """
    done, failed = 0, 0
    while True:
        try:
            for row in rows_from(done):
                yield row
                done, failed = done + 1, 0
            return
        except PfrayError:
            raise
        except (ValueError, TypeError, KeyError, tarfile.TarError) as error:
            raise DataError(f"{name}: the shard is damaged ({first_line(error)}). Remedy: copy it again") from error
        except Exception as error:  # of the network: fsspec's file systems raise many types
            if failed == len(WAITS):
                raise StorageError(
                    f"{name}: the shard cannot be read, {len(WAITS)} attempts in {sum(WAITS)} s failed "
                    f"({hidden(first_line(error))}). Remedy: continue with --resume when it can be reached again"
                ) from error
            logging.getLogger("pfray").warning(
                "%s: the shard cannot be read (%s); the next attempt is in %d s", name, hidden(first_line(error)),
                WAITS[failed],
            )  # fmt: skip
            time.sleep(WAITS[failed])
            failed += 1
