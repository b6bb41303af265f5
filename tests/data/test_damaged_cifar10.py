"""Files of CIFAR-10 that are missing, damaged or of other contents are one line that names them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from pfray.data import cifar10
from pfray.errors import ConfigError, DataError
from tests.data.cifar_files import SMALL, TEST, TRAIN, cut, encode, write_parquet, write_pickle

pytestmark = pytest.mark.usefixtures("empty_cache")


def assert_fails(folder: Path | str | None, *parts: str, error: type[Exception] = DataError, **settings: Any) -> None:
    with pytest.raises(error) as caught:
        cifar10.build(path=None if folder is None else str(folder), **{**SMALL, **settings})
    message = str(caught.value)
    assert "\n" not in message
    assert "Remedy:" in message or error is ConfigError
    for part in parts:
        assert part in message


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    assert_fails(tmp_path / "nowhere", "nowhere: no such folder", "data.path")
    (tmp_path / "empty").mkdir()
    assert_fails(tmp_path / "empty", "empty: no CIFAR-10 files", "train*.parquet")


def test_a_missing_file_is_named(pickles: Path, parquet: Path) -> None:
    (pickles / "data_batch_3").unlink()
    assert_fails(pickles, "data_batch_3: the file is missing")
    (parquet / "test.parquet").unlink()
    assert_fails(parquet, "test*.parquet is missing")


@pytest.mark.parametrize("name", ["train-1.parquet", "test.parquet"])
def test_a_truncated_parquet_file_is_named(parquet: Path, name: str, capfd: pytest.CaptureFixture) -> None:
    (parquet / name).write_bytes(cut((parquet / name).read_bytes()))
    assert_fails(parquet, f"{name}: not a parquet file, or damaged")
    assert capfd.readouterr().err == ""


def test_a_parquet_file_damaged_inside_is_named(parquet: Path) -> None:
    data = bytearray((parquet / "test.parquet").read_bytes())
    data[100:9000] = bytes(8900)
    (parquet / "test.parquet").write_bytes(data)
    assert_fails(parquet, "test.parquet: ")


def test_a_truncated_pickle_is_named(pickles: Path) -> None:
    (pickles / "data_batch_2").write_bytes(cut((pickles / "data_batch_2").read_bytes()))
    assert_fails(pickles, "data_batch_2: not a CIFAR-10 pickle, or damaged")


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["PFRAY_CACHE"] + "-owned",)


def test_a_pickle_that_runs_code_is_refused_before_it_runs(pickles: Path, tmp_path: Path) -> None:
    (pickles / "test_batch").write_bytes(pickle.dumps({b"data": Evil()}))
    assert_fails(pickles, "test_batch", "which no CIFAR-10 file does")
    assert not (tmp_path / "cache-owned").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [10] * 20}, "label 10 is out of range; allowed are 0 to 9"),
        ({"labels": [-1] * 20}, "label -1 is out of range"),
        ({"labels": [0]}, "'labels' is not a list of 20 class numbers"),
        ({"labels": ["cat"] * 20}, "'labels' holds something else"),
        ({"data": np.zeros((20, 100), np.uint8)}, "'data' is not an (M, 3072) array of bytes"),
        ({"data": np.zeros((20, 3072))}, "'data' is not an (M, 3072) array of bytes"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "holds no images"),
    ],
)
def test_wrong_contents_of_a_pickle_are_named(pickles: Path, changes: dict, message: str) -> None:
    write_pickle(pickles / "data_batch_4", TRAIN[:20], **changes)
    assert_fails(pickles, "data_batch_4: ", message)


def test_a_pickle_of_another_thing_is_named(pickles: Path) -> None:
    (pickles / "test_batch").write_bytes(pickle.dumps([1, 2]))
    assert_fails(pickles, "test_batch: holds a list, not a dict")


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (TEST, range(20), {}, "label 19 is out of range"),
        (TEST, [0] * 20, {"column": "photo"}, "columns are photo, label. Remedy: name them image (or img) and label"),
        (TEST, [0] * 20, {"label": "class"}, "columns are image, class"),
        (TEST, ["cat"] * 20, {}, "label 'cat'"),
        (TEST[:, :16], [0] * 20, {}, "image 0 is 16x32, not 32x32"),
    ],
)
def test_wrong_contents_of_a_parquet_file_are_named(
    parquet: Path, images: np.ndarray, labels: Any, names: dict, message: str
) -> None:
    write_parquet(parquet / "test.parquet", [encode(x) for x in images], list(labels), **names)
    assert_fails(parquet, "test.parquet: ", message)


def test_an_image_that_cannot_be_decoded_is_named(parquet: Path) -> None:
    images = [encode(x) for x in TEST]
    images[7]["bytes"] = cut(images[7]["bytes"])
    write_parquet(parquet / "test.parquet", images, [0] * 20)
    assert_fails(parquet, "test.parquet: image 7 cannot be decoded")


def test_a_column_without_encoded_images_is_named(parquet: Path) -> None:
    write_parquet(parquet / "test.parquet", ["a.png"] * 20, [0] * 20)
    assert_fails(parquet, "test.parquet: column image holds no encoded images")


def test_an_empty_parquet_file_is_named(parquet: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": [], "label": []}, features=features).to_parquet(parquet / "test.parquet")
    assert_fails(parquet, "test.parquet: holds no images")


@pytest.mark.parametrize(
    "settings", [{"validation_size": 5}, {"validation_size": 95}, {"validation_size": 0.5}, {"limit_train": 0}]
)
def test_impossible_sizes_are_refused_by_name(parquet: Path, settings: dict) -> None:
    assert_fails(parquet, f"data.{next(iter(settings))}: ", error=ConfigError, **settings)


def test_a_failed_download_says_to_give_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert_fails(None, "'uoft-cs/cifar10' (train) cannot be downloaded", "Couldn't reach the Hub", "data.path")
