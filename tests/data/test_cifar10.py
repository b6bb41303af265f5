from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from pfray.data import _parquet, cifar10
from pfray.errors import StorageError
from pfray.utils import cache
from tests.data.cifar_files import SMALL, TEST, TRAIN, cut, encode, write_parquet

pytestmark = pytest.mark.usefixtures("empty_cache")

REAL = Path(__file__).parents[3] / "shared/data/cifar10-jpeg"


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


def flip(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


@pytest.mark.parametrize("damage", [cut, flip, lambda data: b""])
def test_a_damaged_cache_file_is_made_again(parquet: Path, empty_cache: Path, damage: Callable[[bytes], bytes]) -> None:
    first = cifar10.build(path=str(parquet), **SMALL)
    (file,) = empty_cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert cache.load_tensors(file) is None
    assert cifar10.build(path=str(parquet), **SMALL).fingerprint() == first.fingerprint()
    assert cache.load_tensors(file) is not None
    assert list(empty_cache.iterdir()) == [file]  # no temporary file is left


def test_an_unusable_cache_folder_is_named(parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match=r"file/cache: the cache folder cannot be used .*PFRAY_CACHE"):
        cifar10.build(path=str(parquet), **SMALL)


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
