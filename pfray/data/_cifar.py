"""CIFAR-10 and CIFAR-100 alike: files or the hub, decoded once, split and augmented."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pfray.data import _parquet
from pfray.data._arrays import check_count, hold_out, random_crop_flip, shuffled
from pfray.data._decoded import Labelled, decoded_once
from pfray.data._subset import check_classes, keep_classes
from pfray.errors import DataError
from pfray.task import Split, Task
from pfray.utils import cache

SIZE = (32, 32)
# Part of the cache's key: changed whenever the same files would be decoded to something else.
FORMAT = 1


def make_task(
    name: str,
    names: Sequence[str],
    load: Callable[[], tuple[Split, Split]],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    validation_size: int,
    split_seed: int,
    limit_train: int | None = None,
    classes: Sequence[str] | None = None,
) -> Task:
    """The task of a whole data set or of the ``classes`` named; its settings are checked before anything is loaded.

    names: all classes, by number. load(): (training files, test files), see ``load``. Raises ConfigError, DataError.
    """
    chosen = None if classes is None else check_classes(classes, names)
    check_count("validation_size", validation_size, 1)
    check_count("split_seed", split_seed, 0)
    if limit_train is not None:
        check_count("limit_train", limit_train, 1)
    everything, test = load()
    train, validation = hold_out(everything, validation_size, split_seed, "validation_size")
    task = Task(
        name=name,
        train=train.head(limit_train),
        validation=validation,
        test=shuffled(test, split_seed),
        num_outputs=len(names),
        mean=mean,
        std=std,
        augment=partial(random_crop_flip, pad=4),
    )
    return task if chosen is None else keep_classes(task, chosen)


def load(
    name: str,
    title: str,
    path: str | None,
    hub: str,
    find: Callable[[Path], Mapping[str, list[Path]]],
    read_file: Callable[[Path], Labelled],
    label: str,
    count: int,
) -> tuple[Split, Split]:
    """(training files, test files) of a folder or, without a ``path``, of the hub; from the cache where it has them.

    find: the folder's files by part, ``train`` and ``test``. label: the hub's column of labels, 0 to ``count`` - 1.
    """
    folder = None if path is None else Path(path).expanduser().absolute()
    files = None if folder is None else find(folder)

    def read(part: str) -> list[Labelled]:
        if files is None:
            images, labels = _parquet.read_hub(hub, part, SIZE, label)
            return [(images, _checked(labels, f"{hub} ({part})", title, count))]
        found = ((file, *read_file(file)) for file in files[part])
        return [(images, _checked(labels, str(file), title, count)) for file, images, labels in found]

    source = hub if files is None else [cache.file_stamp(file) for found in files.values() for file in found]
    return decoded_once(name, (FORMAT, str(folder), source), read)


def _checked(labels: np.ndarray, where: str, title: str, count: int) -> np.ndarray:
    if not len(labels):
        raise DataError(f"{where}: holds no images. Remedy: copy the file again, or give data.path another folder")
    if labels.min() < 0 or labels.max() >= count:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{where}: label {wrong} is out of range; allowed are 0 to {count - 1}. "
                        f"Remedy: give data.path a folder with {title}")
    return labels
