"""Rows of a shard, parquet or webdataset tar, on this machine or behind a URL, read from its beginning to its end.

The ``datasets`` library streams both. But it deals out the rows among the processes of a DataLoader, so that all but
the first one would read nothing of a shard that has been dealt out already, and opens tars in a way that s3fs refuses.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

# Bytes that are asked for at a time; http and the hub send a tar in one go, with 0.
AHEAD = 2**23
IN_ONE_GO = ("http", "https", "hf")
# Rows of a parquet file that are decoded together.
TOGETHER = 64


def parquet_rows(file: str, image: str, label: str, first: int = 0) -> Iterator[tuple[bytes | None, Any]]:
    """(encoded image, label) of each row from ``first`` on, None where one is missing. image, label: the columns.

    Raises what pyarrow and fsspec's file systems raise.
    """
    with _opened(file, AHEAD) as opened:
        parquet = pq.ParquetFile(opened)
        groups = list(range(parquet.num_row_groups))
        while groups and first >= (rows := parquet.metadata.row_group(groups[0]).num_rows):
            first -= rows
            del groups[0]
        for batch in parquet.iter_batches(TOGETHER, groups, [image, label]) if groups else ():
            for row in batch.slice(first).to_pylist():
                found = row[image]
                yield found.get("bytes") if isinstance(found, dict) else found, row[label]
            first = max(0, first - len(batch))


def tar_samples(file: str) -> Iterator[dict[str, bytes]]:
    """The files of each sample by suffix, ``{"jpg": ..., "cls": ...}`` of ``00000.jpg`` and ``00000.cls``, in a row.

    Hidden files, and those without a suffix, are passed over. Raises tarfile.TarError, and what fsspec's file systems
    raise.
    """
    with _opened(file, 0) as opened, tarfile.open(fileobj=opened, mode="r|") as tar:
        sample: dict[str, bytes] = {}
        last = ""
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # all of which tarfile would keep
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            content = tar.extractfile(member) if stem and suffix else None
            if content is None:  # a folder, hidden, or without a suffix
                continue
            if sample and f"{folder}/{stem}" != last:
                yield sample
                sample = {}
            last = f"{folder}/{stem}"
            sample[suffix] = content.read()
        if sample:
            yield sample


def _opened(file: str, ahead: int) -> Any:
    import fsspec

    system, path = fsspec.url_to_fs(file)
    protocols = (system.protocol,) if isinstance(system.protocol, str) else system.protocol
    return system.open(path, "rb", block_size=ahead if {*protocols} & {*IN_ONE_GO} else AHEAD)
