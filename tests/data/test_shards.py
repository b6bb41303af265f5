"""Shards of images: found and counted without being read, prepared as tables or streamed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.distributed import split_dataset_by_node

from pfray.data import _shards, _streamed
from pfray.data._crops import Crop
from pfray.data._prepared import Prepared
from pfray.data._streamed import Streamed, retried
from pfray.errors import DataError, StorageError
from tests.pictures import CLASSES, records, write_parquet, write_tar


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_streamed, "WAITS", (0, 0, 0))
    return tmp_path / "cache"


@pytest.fixture
def bucket() -> Iterator[Callable[[Path], str]]:
    """A function that copies a folder into a bucket in memory, and returns its URL."""
    memory = fsspec.filesystem("memory")

    def upload(root: Path) -> str:
        memory.put(str(root) + "/", "/bucket/", recursive=True)
        return "memory://bucket"

    yield upload
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


def parquet(root: Path, shards: int = 3, each: int = 10) -> Path:
    for shard in range(shards):
        path = root / "data" / f"train-{shard:05d}-of-{shards:05d}.parquet"
        write_parquet(path, records(each, first=each * shard), names=CLASSES)
    write_parquet(root / "data" / "validation-00000-of-00001.parquet", records(6, first=900), names=CLASSES)
    return root


def tars(root: Path, shards: int = 3, each: int = 10) -> Path:
    for shard in range(shards):
        write_tar(root / f"pictures-train-{shard:04d}.tar", records(each, first=each * shard))
    write_tar(root / "pictures-validation-0000.tar", records(6, first=900))
    return root


MADE = {"parquet": parquet, "tar": tars}


def refused(root: Path | str, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        _shards.find(str(root), None)
    text = str(caught.value)
    for word in (*words, "Remedy: "):
        assert word in text, text
    assert "\n" not in text


@pytest.mark.parametrize("form", MADE)
def test_shards_of_each_split_are_found_and_counted(tmp_path, form):
    found = _shards.find(str(MADE[form](tmp_path / "shards")), None)
    train, validation = found["train"], found["validation"]
    assert sorted(found) == ["train", "validation"]
    assert train.lengths == (10, 10, 10)
    assert [Path(file).name.count("train") for file in train.files] == [1, 1, 1]
    assert (len(train), len(validation)) == (30, 6)
    assert not train.is_remote
    assert (train.image, train.label) == (("image", "label") if form == "parquet" else ("jpg", "cls"))
    assert train.names == (CLASSES if form == "parquet" else None)
    assert train.take([2, 0]).files == (train.files[2], train.files[0])


def test_a_folder_without_shards_has_none(tmp_path):
    assert _shards.find(str(tmp_path), None) == {}
    (tmp_path / "train.csv").write_text("1")
    assert _shards.find(str(tmp_path), None) == {}


def test_columns_that_are_missing_or_of_another_kind_are_named(tmp_path):
    write_parquet(tmp_path / "a" / "train-0.parquet", records(4), ("picture", "label"))
    refused(tmp_path / "a", "a/train-0.parquet: columns are picture, label", "image, img, jpg")
    write_parquet(tmp_path / "b" / "train-0.parquet", records(4), ("image", "klass"))
    refused(tmp_path / "b", "columns are image, klass", "label, cls, fine_label")
    (tmp_path / "c").mkdir()
    pq.write_table(pa.table({"image": [b"x"], "label": ["cat"]}), tmp_path / "c" / "train-0.parquet")
    refused(tmp_path / "c", "column label holds string, no class numbers")
    pq.write_table(pa.table({"image": ["x.jpg"], "label": [1]}), tmp_path / "c" / "train-0.parquet")
    refused(tmp_path / "c", "column image holds no encoded images (string)")


def test_other_names_of_columns_are_known(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", records(4), ("img", "fine_label"))
    found = _shards.find(str(tmp_path), None)["train"]
    assert (found.image, found.label) == ("img", "fine_label")
    assert Prepared(found).labels().tolist() == [0, 1, 2, 0]


def test_shards_that_disagree_are_named(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", records(4))
    write_parquet(tmp_path / "train-1.parquet", records(4), ("img", "label"))
    refused(tmp_path, "train-1.parquet: its columns are img (encoded images)", "train-0.parquet are image (encoded")


@pytest.mark.parametrize("columns", [("png", "cls"), ("jpg", "label")])
def test_tars_that_disagree_are_named_when_they_are_read(tmp_path, columns):
    """All of a tar's samples would have to be read to know earlier."""
    for shard in range(2):
        write_tar(tmp_path / f"train-{shard}.tar", records(4), columns if shard else ("jpg", "cls"))
    shards = _shards.find(str(tmp_path), None)["train"]
    assert shards.lengths[0] == 4
    with pytest.raises(DataError, match=rf"train-1.tar: its columns are {', '.join(columns)}, and those of .*train-0."
                                        r"tar jpg and cls\. Remedy: shards of one data set$"):  # fmt: skip
        Prepared(shards).labels()
    with pytest.raises(DataError, match=r"train-1.tar, image 0: the sample has no (jpg|cls)\. Remedy"):
        list(Streamed(shards, Crop(8), 20, 3))


def test_a_sample_of_another_form_within_a_tar_is_named(tmp_path):
    path = write_tar(tmp_path / "train-0.tar", records(8))
    write_tar(path, records(1), ("png", "cls"), first=8)
    shards = _shards.find(str(tmp_path), None)["train"]
    assert shards.lengths == (9,)
    prepared = Prepared(shards)
    assert len(prepared.read(7)[0]) > 0
    with pytest.raises(DataError, match=r"train-0.tar, image 8: the sample has no jpg\. Remedy: shards whose"):
        prepared.read(8)
    with pytest.raises(DataError, match=r"train-0.tar, image 8: the sample has no jpg\. Remedy: shards whose"):
        list(Streamed(shards, Crop(8), 20, 3))


def test_damaged_shards_are_named(tmp_path):
    path = write_parquet(tmp_path / "a" / "train-0.parquet", records(4))
    path.write_bytes(path.read_bytes()[:-10])
    refused(tmp_path / "a", "train-0.parquet: not a parquet file, or damaged")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train-0.tar").write_bytes(b"no tar at all" * 100)
    refused(tmp_path / "b", "train-0.tar: not a webdataset tar, or damaged")
    refused("s4://bucket/images", "s4://bucket/images cannot be read", "credentials")


def test_tars_elsewhere_are_counted_by_a_file_beside_them(tmp_path, bucket):
    place = bucket(tars(tmp_path / "shards"))
    refused(place, "nothing tells how many samples the tar holds", "sizes.json beside the tars")
    names = [*(f"pictures-train-{shard:04d}.tar" for shard in range(3)), "pictures-validation-0000.tar"]
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/sizes.json", json.dumps(dict(zip(names, (7, 8, 9, 5), strict=True))).encode())
    found = _shards.find(place, None)
    assert found["train"].lengths == (7, 8, 9)
    assert found["train"].is_remote
    memory.rm("/bucket/sizes.json")
    info = {"splits": {"train": {"filenames": names[:3], "shard_lengths": [1, 2, 3]},
                       "validation": {"filenames": names[3:], "shard_lengths": [4]}}}  # fmt: skip
    memory.pipe("/bucket/_info.json", json.dumps(info).encode())
    assert [part.lengths for part in _shards.find(place, None).values()] == [(1, 2, 3), (4,)]


@pytest.mark.parametrize("form", MADE)
def test_prepared_shards_give_any_image_and_are_prepared_once(tmp_path, form, own_cache):
    shards = _shards.find(str(MADE[form](tmp_path / "shards")), None)["train"]
    prepared = Prepared(shards)
    assert prepared.labels().tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0] * 3
    data, label, name = prepared.read(21)
    assert (data, label) == records(10, first=20)[1]
    assert name == f"{shards.files[2]}, image 1"

    copy = pickle.loads(pickle.dumps(prepared))
    assert len(pickle.dumps(prepared)) == len(pickle.dumps(Prepared(shards))) < 1000
    written = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.arrow")}
    assert len(written) == 3
    assert copy.read(21)[0] == data
    assert {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.arrow")} == written


def test_shards_that_have_changed_or_hold_no_image_are_named(tmp_path):
    shards = _shards.find(str(parquet(tmp_path / "shards")), None)["train"]
    write_parquet(Path(shards.files[1]), records(11), names=CLASSES)
    with pytest.raises(DataError, match=r"train-00001.*: the shard has 11 samples, and had 10 when the run began"):
        Prepared(shards).labels()
    Path(shards.files[1]).write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"train-00001.*: the shard cannot be prepared in .*datasets"):
        Prepared(shards).labels()
    table = pa.table({"image": [{"bytes": None, "path": "x.jpg"}], "label": [0]}, pa.schema({
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64(),
    }))  # fmt: skip
    (tmp_path / "paths").mkdir()
    pq.write_table(table, tmp_path / "paths" / "train-0.parquet")
    prepared = Prepared(_shards.find(str(tmp_path / "paths"), None)["train"])
    with pytest.raises(DataError, match="image 0: the shard does not hold the image itself"):
        prepared.read(0)


def labels(data: Any) -> list[int]:
    return [row["sample"].label for row in data]


@pytest.mark.parametrize("form", MADE)
def test_streamed_shards_are_read_in_order_or_shuffled_by_the_epoch(tmp_path, form):
    shards = _shards.find(str(MADE[form](tmp_path / "shards")), None)["train"]
    in_order = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0] * 3
    assert labels(Streamed(shards, Crop(8), 20, 3)) == in_order

    trained = pickle.loads(pickle.dumps(Streamed(shards, Crop(8, training=True), 20, 3)))
    epochs = []
    for epoch in (1, 1, 2):
        trained.set_epoch(epoch)
        epochs.append(labels(trained))
    assert epochs[0] == epochs[1] != epochs[2]
    assert [sorted(epoch) for epoch in epochs] == [sorted(in_order)] * 3
    assert in_order not in epochs
    assert len(trained) == 30


def test_workers_share_out_the_shards(tmp_path):
    shards = _shards.find(str(parquet(tmp_path / "shards", shards=4)), None)["train"]
    data = Streamed(shards, Crop(8), 20, 3).data
    assert data.num_shards == 4
    parts = [list(split_dataset_by_node(data, rank, 2)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [20, 20]
    sums = [[int(row["sample"].image.sum()) for row in part] for part in parts]
    assert sorted(sums[0] + sums[1]) == sorted(int(row["sample"].image.sum()) for row in data)


def test_a_wrong_label_or_a_missing_one_names_the_sample(tmp_path):
    shards = _shards.find(str(parquet(tmp_path / "shards")), None)["train"]
    with pytest.raises(DataError, match=r"train-00000-of-00003.parquet, image 2: label 2 is out of range; allowed are 0"
                                        r" to 1\. Remedy"):  # fmt: skip
        list(Streamed(shards, Crop(8), 20, 2))
    write_tar(tmp_path / "tars" / "train-0.tar", records(8))
    found = _shards.find(str(tmp_path / "tars"), None)["train"]
    write_parquet(tmp_path / "none.parquet", [(data, None if label == 2 else label) for data, label in records(8)])
    broken = _shards.Shards("parquet", (str(tmp_path / "none.parquet"),), (8,), "image", "label")
    with pytest.raises(DataError, match=r"none.parquet, image 2: the sample has no label\. Remedy"):
        list(Streamed(broken, Crop(8), 20, 3))
    assert len(list(Streamed(found, Crop(8), 20, 3))) == 8


def test_a_shard_that_is_damaged_further_on_is_named(tmp_path):
    path = write_parquet(tmp_path / "train-0.parquet", records(40))
    shards = _shards.find(str(tmp_path), None)["train"]
    content = bytearray(path.read_bytes())
    content[200:2200] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises((DataError, StorageError), match=r"train-0.parquet: the shard (is damaged|cannot be read)"):
        list(Streamed(shards, Crop(8), 20, 3))


class Flaky:
    """Ten rows, of which the reading fails ``faults`` times after each third."""

    def __init__(self, faults: int, error: Exception) -> None:
        self.faults, self.left, self.error, self.opened = faults, faults, error, list[int]()

    def __call__(self, first: int) -> Iterator[int]:
        self.opened.append(first)
        for row in range(first, 10):
            if row % 3 == 2 and self.left:
                self.left -= 1
                raise self.error
            if row % 3 == 0:
                self.left = self.faults
            yield row


def test_a_bucket_that_comes_back_is_read_on_from_where_it_was():
    rows = Flaky(2, ConnectionError("reset by peer"))
    assert list(retried(rows, "s3://bucket/train-0.tar")) == list(range(10))
    assert rows.opened == [0, 2, 2, 5, 5, 8, 8]


def test_a_bucket_that_stays_away_is_one_line_after_several_attempts():
    rows = Flaky(9, ConnectionError("reset by peer"))
    with pytest.raises(StorageError, match=r"^s3://bucket/x.tar: the shard cannot be read, 3 attempts in 0 s failed "
                                           r"\(reset by peer\)\. Remedy: continue with --res") as caught:  # fmt: skip
        list(retried(rows, "s3://bucket/x.tar"))
    assert rows.opened == [0, 2, 2, 2]
    assert caught.value.exit_code == 1


def test_a_bucket_gives_what_a_folder_does_until_it_goes_away(tmp_path, bucket):
    root = parquet(tmp_path / "shards")
    shards = _shards.find(bucket(root), None)["train"]
    assert shards.lengths == (10, 10, 10)
    assert shards.names == CLASSES
    assert labels(Streamed(shards, Crop(8), 20, 3)) == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0] * 3
    rows = iter(Streamed(shards, Crop(8), 20, 3))
    next(rows)
    fsspec.filesystem("memory").rm(shards.files[2])
    with pytest.raises(StorageError, match=r"train-00002-of-00003.parquet: the shard cannot be read, 3 attempts"):
        list(rows)
