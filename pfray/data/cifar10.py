"""CIFAR-10 (Krizhevsky 2009) from a local folder or the Hugging Face hub, decoded once and cached."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pfray.data import _cifar, _parquet, _pickles
from pfray.data._decoded import Labelled
from pfray.errors import DataError
from pfray.task import Task

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
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
    label); without it the data set ``hub`` is downloaded. The images are decoded once into the cache folder.
    validation_size: images held out of the training files, stratified; the rest is cut to its first ``limit_train``.
    classes: only the images of these, numbered in this order; the sizes above count all classes.
    All splits are shuffled by ``split_seed``. Training batches are padded by 4, cropped and mirrored at random.
    Raises DataError for files that are missing, damaged or of another form; ConfigError for impossible sizes and
    unknown classes.
    """
    return _cifar.make_task(
        "cifar10",
        NAMES,
        partial(_cifar.load, "cifar10", "CIFAR-10", path, hub, _find, _read_file, "label", len(NAMES)),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        validation_size=validation_size,
        split_seed=split_seed,
        limit_train=limit_train,
        classes=classes,
    )


def _find(folder: Path) -> dict[str, list[Path]]:
    """Files of both parts in a folder or, as archives and hub snapshots are unpacked, in a folder in it."""
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
    return _parquet.read_file(file, _cifar.SIZE) if file.suffix == ".parquet" else _pickles.read_batch(file)
