from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from pfray.data import _parquet, cifar10
from pfray.errors import ConfigError, DataError, StorageError
from pfray.utils import cache

REAL = Path(__file__).parents[3] / "shared/data/cifar10-jpeg"
RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (100, 32, 32, 3), np.uint8)
TEST = RNG.integers(0, 256, (20, 32, 32, 3), np.uint8)
SMALL: dict[str, Any] = {"validation_size": 20}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encode(pixels: np.ndarray, form: str = "PNG") -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return {"bytes": buffer.getvalue(), "path": None}


def write_parquet(path: Path, images: list, labels: list, column: str = "image", label: str = "label") -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    datasets.Dataset.from_dict({column: images, label: labels}).to_parquet(path)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    folder = tmp_path / "parquet"
    write_parquet(folder / "train-0.parquet", [encode(x) for x in TRAIN[:60]], [i % 10 for i in range(60)])
    write_parquet(folder / "train-1.parquet", [encode(x) for x in TRAIN[60:]], [i % 10 for i in range(40)])
    write_parquet(folder / "test.parquet", [encode(x) for x in TEST], [i % 10 for i in range(20)])
    return folder


def write_pickle(path: Path, images: np.ndarray, **changes: Any) -> None:
    batch = {
        b"batch_label": b"training batch",
        b"data": np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), 3072),
        b"labels": [i % 10 for i in range(len(images))],
    }
    batch.update({key.encode(): value for key, value in changes.items()})
    path.write_bytes(pickle.dumps(batch, protocol=2))


@pytest.fixture
def pickles(tmp_path: Path) -> Path:
    folder = tmp_path / "pickles"
    folder.mkdir()
    for n in range(5):
        write_pickle(folder / f"data_batch_{n + 1}", TRAIN[20 * n : 20 * n + 20])
    write_pickle(folder / "test_batch", TEST)
    return folder


def labelled(*splits: Any) -> set[tuple[bytes, int]]:
    return {(bytes(x), int(y)) for s in splits for x, y in zip(s.inputs.numpy(), s.targets, strict=True)}


EXPECTED_TRAIN = {(bytes(np.ascontiguousarray(x.transpose(2, 0, 1))), i % 10) for i, x in enumerate(TRAIN)}
EXPECTED_TEST = {(bytes(np.ascontiguousarray(x.transpose(2, 0, 1))), i % 10) for i, x in enumerate(TEST)}


@pytest.mark.parametrize("form", ["parquet", "pickles"])
def test_images_and_labels_come_back_exactly_and_splits_are_disjoint(form: str, request: Any) -> None:
    task = cifar10.build(path=str(request.getfixturevalue(form)), **SMALL)
    assert task.train.inputs.shape == (80, 3, 32, 32)
    assert task.train.inputs.dtype == torch.uint8
    assert len(labelled(task.train, task.validation)) == 100  # nothing is in both
    assert labelled(task.train, task.validation) == EXPECTED_TRAIN
    assert labelled(task.test) == EXPECTED_TEST
    assert task.validation.targets.bincount().tolist() == [2] * 10
    assert task.train.targets.bincount().tolist() == [8] * 10


def test_the_archive_may_be_unpacked_one_folder_down(pickles: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    pickles.rename(outer / "cifar-10-batches-py")
    assert len(cifar10.build(path=str(outer), **SMALL).test) == 20


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_every_age_are_read(pickles: Path, protocol: int) -> None:
    batch = pickle.loads((pickles / "test_batch").read_bytes())
    (pickles / "test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
    assert labelled(cifar10.build(path=str(pickles), **SMALL).test) == EXPECTED_TEST


def test_column_img_with_image_features_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    for name, images in (("train", TRAIN), ("test", TEST)):
        rows = {"img": [encode(x) for x in images], "label": [i % 10 for i in range(len(images))]}
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}.parquet")
    assert labelled(cifar10.build(path=str(folder), **SMALL).test) == EXPECTED_TEST


def test_the_same_seed_gives_the_same_splits_and_another_seed_others(parquet: Path) -> None:
    first, again, other = (cifar10.build(path=str(parquet), split_seed=s, **SMALL) for s in (0, 0, 1))
    assert first.fingerprint() == again.fingerprint()
    assert labelled(first.validation) != labelled(other.validation)


def test_limit_train_cuts_training_only(parquet: Path) -> None:
    task = cifar10.build(path=str(parquet), limit_train=30, **SMALL)
    assert (len(task.train), len(task.validation), len(task.test)) == (30, 20, 20)


def test_augmentation_crops_and_mirrors_within_the_batch_type(parquet: Path) -> None:
    task = pickle.loads(pickle.dumps(cifar10.build(path=str(parquet), **SMALL)))
    marks = torch.zeros(1000, 3, 32, 32, dtype=torch.uint8)
    marks[:, 1, 16, 10] = 9
    out = task.augment(marks, torch.Generator().manual_seed(0))
    assert out.dtype == torch.uint8
    assert out.shape == marks.shape
    _, channels, rows, columns = out.nonzero().T
    assert len(rows) == 1000
    assert channels.unique().tolist() == [1]
    assert (rows - 16).unique().tolist() == list(range(-4, 5))
    # Column 10 goes to 6..14, or mirrored to 17..25.
    assert columns.unique().tolist() == [*range(6, 15), *range(17, 26)]
    assert 420 < int((columns > 16).sum()) < 580
    assert torch.equal(out, task.augment(marks, torch.Generator().manual_seed(0)))


def test_the_second_load_reads_the_cache_and_not_the_images(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cifar10.build(path=str(parquet), **SMALL)
    monkeypatch.setattr(_parquet, "read_file", lambda file, size: pytest.fail(f"{file} was decoded again"))
    assert cifar10.build(path=str(parquet), **SMALL).fingerprint() == first.fingerprint()


def test_changed_source_files_are_read_again(parquet: Path) -> None:
    cifar10.build(path=str(parquet), **SMALL)
    write_parquet(parquet / "test.parquet", [encode(x) for x in TEST[:10]], list(range(10)))
    assert len(cifar10.build(path=str(parquet), **SMALL).test) == 10


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


@pytest.mark.parametrize("damage", [cut, flip, lambda data: b""])
def test_a_damaged_cache_file_is_made_again(parquet: Path, own_cache: Path, damage: Callable[[bytes], bytes]) -> None:
    first = cifar10.build(path=str(parquet), **SMALL)
    (file,) = own_cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert cache.load_tensors(file) is None
    assert cifar10.build(path=str(parquet), **SMALL).fingerprint() == first.fingerprint()
    assert cache.load_tensors(file) is not None
    assert list(own_cache.iterdir()) == [file]  # no temporary file is left


def test_an_unusable_cache_folder_is_named(parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match=r"file/cache: the cache folder cannot be used .*PFRAY_CACHE"):
        cifar10.build(path=str(parquet), **SMALL)


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


def test_the_hub_is_read_once_and_then_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hub(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        images = TRAIN if split == "train" else TEST
        rows = {"img": [encode(x) for x in images], "label": [i % 10 for i in range(len(images))]}
        return datasets.Dataset.from_dict(rows).cast_column("img", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", hub)
    for _ in range(2):
        assert labelled(cifar10.build(**SMALL).test) == EXPECTED_TEST
    assert asked == [("uoft-cs/cifar10", "train"), ("uoft-cs/cifar10", "test")]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real files are not at {REAL}")
def test_the_real_files_give_balanced_splits_of_the_documented_sizes() -> None:
    task = cifar10.build(path=str(REAL))
    assert task.train.targets.bincount().tolist() == [4500] * 10
    assert task.validation.targets.bincount().tolist() == [500] * 10
    assert len(task.test) == 8000
    x = task.normalize(task.train.inputs[:2000])
    assert x.mean().abs() < 0.15
    assert 0.9 < x.std() < 1.2
