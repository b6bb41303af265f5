"""Tasks of labelled images of any number, in class folders or shards: found, split, and read when they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfray.data import _shards
from pfray.data._arrays import hold_out, shuffled
from pfray.data._class_folders import ClassFolders, class_folders, class_names, looks_like_split
from pfray.data._damage import Counted, collate
from pfray.data._image_settings import EXPECTED, METRICS, ImageSettings
from pfray.data._images import Images, Rows
from pfray.data._prepared import Prepared
from pfray.data._shards import Shards
from pfray.data._split import SAMPLED
from pfray.data._stream import Stream
from pfray.data._streamed import Streamed
from pfray.data._subset import check_classes
from pfray.errors import ConfigError, DataError
from pfray.task import SPLITS, Split, Task
from pfray.utils.url import is_url

# Names of a split's folder.
FOLDERS = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}
# Classes named in a message.
MOST = 3


def make_task(name: str, settings: ImageSettings, count: int | None = None, published: Sequence[str] = SPLITS) -> Task:
    """The task of the images at ``settings.path`` or ``settings.hub``.

    count: classes that there must be. published: splits that are used if they are there. Raises ConfigError, DataError.
    """
    settings.check()
    place = settings.path
    if place is not None and not is_url(place):
        place = str(Path(place).expanduser().absolute())
    folders = {} if place is None or is_url(place) else _folders(Path(place))
    found: Mapping[str, ClassFolders | Shards] = folders or _shards.find(place, settings.hub)
    where = place or f"'{settings.hub}'"
    found = {split: found[split] for split in published if split in found}
    if "train" not in found:
        if place is not None and not is_url(place) and looks_like_split(Path(place)):
            raise DataError(f"{where}: its folders hold images, so it looks like one split. Remedy: the folder above, "
                            f"with {EXPECTED}")  # fmt: skip
        raise DataError(f"{where}: no images are found. Remedy: a folder with {EXPECTED}")
    if len(found) == 1:
        raise DataError(f"{where}: there is a training split alone. Remedy: add val/<class>/ or test/<class>/, or "
                        "shards of a validation or test split")  # fmt: skip
    shards = {split: part for split, part in found.items() if isinstance(part, Shards)}
    _check_names(shards)
    streaming = settings.streaming
    if streaming is None:
        streaming = any(part.is_remote for part in shards.values())
    if streaming and not shards:
        raise ConfigError("data.streaming: class folders are read by index. Remedy: data.streaming=false")
    splits, names, chosen = (
        _streams(shards, settings, count) if streaming else _by_index(where, found, settings, count)
    )
    task = Task(
        name=name, train=splits["train"], validation=splits["validation"], test=splits["test"],
        num_outputs=len(chosen or names), mean=_as_tuple(settings.mean), std=_as_tuple(settings.std), classes=chosen,
        score=METRICS[settings.metric], metric_name=settings.metric,
    )  # fmt: skip
    if streaming:
        _check_mixed(task)
    return task


def _as_tuple(value: Any) -> Any:
    """A list of an experiment file as a tuple; the task checks the rest."""
    return tuple(value) if isinstance(value, list) else value


def _folders(place: Path) -> dict[str, ClassFolders]:
    """Class folders by split; empty where there are none. Raises DataError if the splits' classes differ."""
    if not place.is_dir():
        raise DataError(f"{place}: no such folder. Remedy: give data.path a folder with {EXPECTED}")
    found = {split: next((place / name for name in names if (place / name).is_dir()), None)
             for split, names in FOLDERS.items()}  # fmt: skip
    classes = {split: names for split, folder in found.items() if folder is not None and (names := class_names(folder))}
    train = classes.get("train")
    if train is None:
        return {}
    for split, names in classes.items():
        for those, own, others in ((names, split, "train"), (train, "train", split)):
            if extra := sorted(set(those) - set(classes[others])):
                raise DataError(f"{found[own]}: has the class {_some(extra)}, and {found[others]} has not. Remedy: the "
                                "same class folders in both")  # fmt: skip
    return {split: class_folders(folder, train) for split in classes if (folder := found[split]) is not None}


def _check_names(shards: Mapping[str, Shards]) -> None:
    """Raise DataError if the splits say that they number their classes differently."""
    known = {part.files[0]: part.names for part in shards.values() if part.names is not None}
    for (first, wanted), (file, names) in pairwise(known.items()):
        for number, (other, own) in enumerate(zip_longest(wanted, names, fillvalue="missing")):
            if own != other:
                raise DataError(f"{file}: class {number} is '{own}', and '{other}' in {first}. Remedy: the same class "
                                "numbers in the shards of all splits")  # fmt: skip


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(f"'{name}'" for name in names[:MOST]) + more


Made = tuple[dict[str, Stream], Sequence[str], tuple[int, ...] | None]


def _by_index(
    where: str, found: Mapping[str, ClassFolders | Shards], settings: ImageSettings, count: int | None
) -> Made:
    """(splits, names of all classes, numbers of the chosen ones), in an order of pfray's own."""
    rows: dict[str, Rows] = {
        split: Prepared(part) if isinstance(part, Shards) else part for split, part in found.items()
    }
    labels = {split: part.labels() for split, part in rows.items()}
    known = found["train"].names
    names = known or tuple(str(number) for number in range(settings.num_classes or int(labels["train"].max()) + 1))
    _check_count(where, names, settings, count)
    for split, own in labels.items():
        if len(own) and (own.min() < 0 or own.max() >= len(names)):
            wrong = own.min() if own.min() < 0 else own.max()
            raise DataError(f"{where}: the {split} split has the label {wrong}; allowed are 0 to {len(names) - 1}, the "
                            "labels of the training split. Remedy: correct the labels")  # fmt: skip
        if missing := sorted(set(range(len(names))) - set(np.unique(own).tolist())):
            raise DataError(f"{where}: the {split} split has no image of the class "
                            f"{_some([names[number] for number in missing])}. Remedy: add some, or take the class out "
                            "of all splits")  # fmt: skip
    chosen = None if settings.classes is None else check_classes(settings.classes, names)
    numbers = None
    if chosen is not None:
        by_label = np.full(len(names), -1)
        by_label[list(chosen)] = np.arange(len(chosen))
        numbers = tuple(by_label.tolist())
        labels = {split: by_label[own] for split, own in labels.items()}
    order = {}
    for split, own in labels.items():
        which = np.flatnonzero(own >= 0)
        order[split] = Split(torch.from_numpy(which), torch.from_numpy(own[which]))
    sources = {split: split for split in SPLITS}
    if len(order) == 2:
        other = next(split for split in order if split != "train")
        sources = {"train": "train", "validation": "train", "test": other}
        train, validation = hold_out(
            order["train"], settings.held(len(order["train"])), settings.split_seed, "validation_size"
        )
        order = {"train": train, "validation": validation, "test": shuffled(order[other], settings.split_seed)}
    else:
        order = {split: shuffled(own, settings.split_seed) for split, own in order.items()}
    order["train"] = order["train"].head(settings.limit_train)
    splits = {}
    for split in SPLITS:
        plain = Images(rows[sources[split]], settings.image_crop(), numbers)
        training = replace(plain, crop=settings.image_crop(training=True)) if split == "train" else plain
        counted = Counted(split, len(order[split]))
        splits[split] = Stream(split, training, collate, counted, order[split].inputs, plain=plain)
    return splits, names, chosen


def _streams(found: Mapping[str, Shards], settings: ImageSettings, count: int | None) -> Made:
    """(splits, names of the classes, None), in the order of the shards."""
    for key in ("limit_train", "classes"):
        if getattr(settings, key) is not None:
            raise ConfigError(f"data.{key}: shards that are streamed are read whole. Remedy: leave it out, or "
                              "data.streaming=false")  # fmt: skip
    train = found["train"]
    number = settings.num_classes or count
    if train.names is None and number is None:
        raise ConfigError("data.num_classes: the shards do not tell the number of classes. Remedy: give it, such as "
                          "data.num_classes=1000")  # fmt: skip
    names = train.names or tuple(map(str, range(number or 0)))
    _check_count(train.files[0], names, settings, count)
    if len(found) == 2:
        (other,) = (split for split in found if split != "train")
        held, rest = _held_shards(train, settings)
        found = {"train": rest, "validation": held, "test": found[other]}
    splits = {}
    for split, part in found.items():
        plain = Streamed(part, settings.image_crop(), settings.shuffle_buffer, len(names))
        training = Streamed(part, settings.image_crop(split == "train"), settings.shuffle_buffer, len(names))
        splits[split] = Stream(split, training, collate, Counted(split, len(part)), plain=plain)
    return splits, names, None


def _held_shards(train: Shards, settings: ImageSettings) -> tuple[Shards, Shards]:
    """(whole shards with at least the validation's size, the rest)."""
    order = np.random.default_rng(settings.split_seed).permutation(len(train.files)).tolist()
    wanted, held = settings.held(len(train)), 0
    for taken, shard in enumerate(order, start=1):
        held += train.lengths[shard]
        if held >= wanted and taken < len(order):
            return train.take(order[:taken]), train.take(sorted(order[taken:]))
    raise DataError(f"{train.files[0]}: no {wanted} images can be held out for validation in whole shards, of which "
                    f"there are {len(train.files)} with {len(train)} images in all. Remedy: a smaller "
                    "data.validation_size, more shards, or data.streaming=false")  # fmt: skip


def _check_count(where: str, names: Sequence[str], settings: ImageSettings, count: int | None) -> None:
    wanted = settings.num_classes or count
    if wanted is not None and len(names) != wanted:
        remedy = "data.num_classes" if settings.num_classes else "another data.path, or data.name=imagefolder"
        raise DataError(f"{where}: has {len(names)} classes, and {wanted} are expected. Remedy: {remedy}")
    if len(names) < 2:
        raise DataError(f"{where}: has {len(names)} class, and there is nothing to tell apart. Remedy: two or more")


def _check_mixed(task: Task) -> None:
    """Raise DataError if the training split begins with images of one class."""
    labels = task.train.head(SAMPLED).targets
    if len(labels) > 2 and len(labels.unique()) == 1:
        raise DataError(f"the first {len(labels)} training images are all of class {int(labels[0])}: in shards that "
                        "are sorted by class no batch is a fair sample. Remedy: write the shards in mixed order, or "
                        "data.streaming=false")  # fmt: skip
