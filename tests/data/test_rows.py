"""Rows of single shards, as the ``datasets`` library reads them too."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader, IterableDataset

from pfray.data._rows import parquet_rows, tar_samples
from tests.pictures import records, write_parquet, write_tar

ROWS = records(10)


def test_a_parquet_file_is_read_from_any_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    pq.write_table(pq.read_table(path), path, row_group_size=4)
    assert pq.ParquetFile(path).num_row_groups == 3
    for first in range(12):
        assert list(parquet_rows(str(path), "image", "label", first)) == ROWS[first:]


def test_images_may_be_plain_bytes_and_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [b"x", None], "other": [1, 2], "cls": [4, None]}), tmp_path / "a.parquet")
    assert list(parquet_rows(str(tmp_path / "a.parquet"), "jpg", "cls")) == [(b"x", 4), (None, None)]


def test_a_tar_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ROWS)
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("more.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("more.d/README"))
        # Samples of the same name in other folders, and a name with several dots.
        for name in ("00009.jpg", "00009.cls", "00010.jpg", "00010.seg.png", "00010.cls"):
            member = tarfile.TarInfo(f"more.d/{name}")
            member.size = 1
            tar.addfile(member, io.BytesIO(b"7"))
    found = list(tar_samples(str(path)))
    assert found[:10] == [{"jpg": data, "cls": str(label).encode()} for data, label in ROWS]
    assert found[10:] == [{"jpg": b"7", "cls": b"7"}, {"jpg": b"7", "seg.png": b"7", "cls": b"7"}]
    library = datasets.load_dataset("webdataset", data_files=[str(path)], split="train", streaming=True)
    read = list(library.cast_column("jpg", datasets.Image(decode=False)))
    assert [(row["jpg"]["bytes"], row["cls"]) for row in read] == [
        (sample["jpg"], int(sample["cls"])) for sample in found
    ]


def test_what_macos_adds_to_a_tar_is_no_sample(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ROWS)
    with tarfile.open(path, "a") as tar:
        for name in ("._00000.jpg", "more.d/._00000.cls", ".DS_Store"):
            tar.addfile(tarfile.TarInfo(name))
    assert len(list(tar_samples(str(path)))) == 10


class Read(IterableDataset):
    """Labels of both forms of shards, in whatever process."""

    def __init__(self, parquet: Path, tar: Path) -> None:
        self.parquet, self.tar = str(parquet), str(tar)

    def __iter__(self) -> Any:
        yield from (label for _, label in parquet_rows(self.parquet, "image", "label"))
        yield from (int(sample["cls"]) for sample in tar_samples(self.tar))


@pytest.mark.parametrize("processes", [1, 2])
def test_every_process_that_reads_ahead_reads_all_rows(tmp_path: Path, processes: int) -> None:
    data = Read(write_parquet(tmp_path / "a.parquet", ROWS), write_tar(tmp_path / "a.tar", ROWS))
    found = list(DataLoader(data, batch_size=None, num_workers=processes))
    assert sorted(found) == sorted(2 * processes * [label for _, label in ROWS])
