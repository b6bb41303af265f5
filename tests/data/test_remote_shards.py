"""Shards in an S3 bucket: read as from a folder, by any process, and read on when the bucket has been away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pfray.data import _shards, _streamed, imagefolder
from pfray.data._crops import Crop
from pfray.data._prepared import Prepared
from pfray.data._streamed import Streamed
from pfray.errors import DataError, StorageError
from tests.pictures import epoch, records, write_parquet, write_tar
from tests.stores import ask_for_keys, needs_s3, s3_server

pytestmark = needs_s3
FORMS = {"parquet": write_parquet, "tar": write_tar}
# More than are read at a time, so that some are opened in the middle of an epoch.
SHARDS, EACH = 12, 4


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as found:
        yield found


@pytest.fixture(scope="module", params=FORMS)
def place(request: pytest.FixtureRequest, endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of 48 training and 6 validation images, the classes in turns."""
    import s3fs

    root, form = tmp_path_factory.mktemp("shards"), request.param
    for shard in range(SHARDS):
        FORMS[form](root / f"train-{shard:05d}.{form}", records(EACH, first=EACH * shard))
    FORMS[form](root / f"validation-00000.{form}", records(6, first=900))
    if form == "tar":
        lengths = {path.name: 6 if "validation" in path.name else EACH for path in root.iterdir()}
        (root / "sizes.json").write_text(json.dumps(lengths))
    s3fs.S3FileSystem().put(f"{root}/", f"runs/{form}/", recursive=True)
    return f"s3://runs/{form}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "cache"))


LABELS = [0, 1, 2, 0] * SHARDS


def labels(data: Streamed) -> Iterator[int]:
    return (row["sample"].label for row in data)


def test_a_bucket_gives_the_samples_of_a_folder_streamed_or_copied(place):
    found = _shards.find(place, None)
    assert [len(found[split]) for split in ("train", "validation")] == [SHARDS * EACH, 6]
    assert found["train"].is_remote
    assert list(labels(Streamed(found["train"], Crop(8), 20, 3))) == LABELS
    prepared = Prepared(found["train"])
    assert prepared.labels().tolist() == LABELS
    assert prepared.read(5)[:2] == records(EACH, first=EACH)[1]


def test_processes_that_read_ahead_read_the_bucket_too(place):
    task = imagefolder.build(path=place, size=8, num_classes=3, validation_size=8)
    assert [len(split) for split in (task.train, task.validation, task.test)] == [40, 8, 6]
    read = replace(task.train, loaders=2)
    found = torch.cat([targets for _, targets in epoch(read, 4, 0)]).tolist()
    assert len(found) == 40
    assert sorted(found) == sorted(torch.cat([targets for _, targets in read.batches(40)]).tolist())


@pytest.fixture
def away(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], list[float]]]:
    """A function that makes the bucket refuse everything until it was waited for so often; it returns the waits."""
    waits: list[float] = []

    def go(until: float) -> list[float]:
        def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) >= until:
                ask_for_keys(endpoint, float("inf"))

        monkeypatch.setattr(_streamed, "time", SimpleNamespace(sleep=wait))
        ask_for_keys(endpoint, 0)
        return waits

    yield go
    ask_for_keys(endpoint, float("inf"))


@pytest.mark.parametrize("training", [False, True])
def test_a_bucket_that_goes_away_in_an_epoch_is_waited_for(place, away, training, caplog):
    shards = _shards.find(place, None)["train"]
    rows = labels(Streamed(shards, Crop(8, training=training), 2, 3))
    first = [next(rows) for _ in range(5)]
    waits = away(3)
    assert sorted(first + list(rows)) == sorted(LABELS)
    assert sorted(set(waits)) == list(_streamed.WAITS[: len(set(waits))])  # a training reads several at a time
    assert len(waits) == 3 or training
    assert len(caplog.messages) == len(waits) >= 3
    assert caplog.messages[0].startswith(f"{place}/train-000")
    assert caplog.messages[0].endswith("; the next attempt is in 1 s")


def test_a_bucket_that_stays_away_ends_the_epoch_in_one_line_and_the_next_one_can_be_read(place, away, endpoint):
    shards = _shards.find(place, None)["train"]
    rows = labels(Streamed(shards, Crop(8), 2, 3))
    next(rows)
    waits = away(float("inf"))
    with pytest.raises(StorageError, match=rf"^{place}/train-\d+\.\w+: the shard cannot be read, 9 attempts in 300 s "
                                           r"failed \(.*\)\. Remedy: continue with --resume") as caught:  # fmt: skip
        list(rows)
    assert waits == list(_streamed.WAITS)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    ask_for_keys(endpoint, float("inf"))
    assert list(labels(Streamed(shards, Crop(8), 2, 3))) == LABELS


def test_a_bucket_that_is_away_from_the_beginning_is_one_line(place, away):
    away(float("inf"))
    with pytest.raises(DataError, match=rf"^{place}.* cannot be read \(.*\)\. Remedy: check data.path, the net"):
        imagefolder.build(path=place, size=8, num_classes=3)
