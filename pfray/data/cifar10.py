"""CIFAR-10 (Krizhevsky 2009) from a local folder or the Hugging Face hub, decoded once and cached."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pfray.data import _parquet, _pickles
from pfray.data._arrays import check_count, hold_out, random_crop_flip, shuffled
from pfray.data._decoded import Labelled, decoded_once
from pfray.data._subset import check_classes, keep_classes
from pfray.errors import DataError
from pfray.task import Split, Task
from pfray.utils import cache

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASSES = len(NAMES)
SIZE = (32, 32)
# Part of the cache's key: changed whenever the same files would be decoded to something else.
FORMAT = 1
FORMS = "data_batch_1 ... data_batch_5 and test_batch, or train*.parquet and test*.parquet"


def build(
    path: str | None = None,
    hub: str = "uoft-cs/cifar10",
    validation_size: int = 5000,
    split_seed: int = 0,
    limit_train: int | None = None,
    classes: Sequence[str] | None = None,
) -> Task:
    """CIFAR-10 as 3x32x32 uint8 images.

    path: folder with the python pickles or with parquet files (train*.parquet, test*.parquet, columns image or img, and
    label); without it the data set ``hub`` is downloaded. Either is decoded once into the cache folder.
    validation_size: images held out of the training files, stratified; the rest is cut to its first ``limit_train``.
    classes: only the images of these, numbered in this order; the sizes before are those of all classes.
    All splits are shuffled by ``split_seed``. Training batches are padded by 4, cropped and mirrored at random.
    Raises DataError for files that are missing, damaged or of another form; ConfigError for impossible sizes and
    unknown classes.
    """
    chosen = None if classes is None else check_classes(classes, NAMES)
    check_count("validation_size", validation_size, 1)
    check_count("split_seed", split_seed, 0)
    if limit_train is not None:
        check_count("limit_train", limit_train, 1)
    everything, test = _load(None if path is None else Path(path).expanduser().absolute(), hub)
    train, validation = hold_out(everything, validation_size, split_seed, "validation_size")
    task = Task(
        name="cifar10",
        train=train.head(limit_train),
        validation=validation,
        test=shuffled(test, split_seed),
        num_outputs=CLASSES,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augment=partial(random_crop_flip, pad=4),
    )
    return task if chosen is None else keep_classes(task, chosen)


def _load(folder: Path | None, hub: str) -> tuple[Split, Split]:
    """(training files, test files), from the cache where it holds them."""
    files = None if folder is None else _find(folder)

    def read(part: str) -> list[Labelled]:
        return [_read_hub(hub, part)] if files is None else [_read_file(file) for file in files[part]]

    source = hub if files is None else [cache.file_stamp(file) for found in files.values() for file in found]
    return decoded_once("cifar10", (FORMAT, str(folder), source), read)


def _find(folder: Path) -> dict[str, list[Path]]:
    """The files of both parts in a folder, or in a folder in it, as archives and hub snapshots are unpacked."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Remedy: give data.path a folder with {FORMS}")
    for place in (folder, *sorted(child for child in folder.iterdir() if child.is_dir())):
        if any(place.glob("data_batch_*")) or (place / "test_batch").is_file():
            train, test = [place / f"data_batch_{n}" for n in range(1, 6)], [place / "test_batch"]
            missing = [file for file in (*train, *test) if not file.is_file()]
            if missing:
                raise DataError(f"{missing[0]}: the file is missing. {_pickles.REMEDY}")
            return {"train": train, "test": test}
        train, test = sorted(place.glob("train*.parquet")), sorted(place.glob("test*.parquet"))
        if train or test:
            if not (train and test):
                raise DataError(f"{place}: {'train' if test else 'test'}*.parquet is missing beside "
                                f"{(train or test)[0].name}. Remedy: add it")
            return {"train": train, "test": test}
    raise DataError(f"{folder}: no CIFAR-10 files. Remedy: give data.path a folder with {FORMS}")


def _read_file(file: Path) -> Labelled:
    images, labels = _parquet.read_file(file, SIZE) if file.suffix == ".parquet" else _pickles.read_batch(file)
    return images, _checked(labels, str(file))


def _read_hub(hub: str, part: str) -> Labelled:
    images, labels = _parquet.read_hub(hub, part, SIZE)
    return images, _checked(labels, f"{hub} ({part})")


def _checked(labels: np.ndarray, where: str) -> np.ndarray:
    if not len(labels):
        raise DataError(f"{where}: holds no images. Remedy: copy the file again, or give data.path another folder")
    if labels.min() < 0 or labels.max() >= CLASSES:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{where}: label {wrong} is out of range; allowed are 0 to {CLASSES - 1}. "
                        "Remedy: give data.path a folder with CIFAR-10")
    return labels
