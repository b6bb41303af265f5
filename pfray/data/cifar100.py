"""CIFAR-100 (Krizhevsky 2009) from parquet files or the Hugging Face hub, whole or one of its twenty superclasses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pfray.data import _parquet
from pfray.data._arrays import check_count, hold_out, random_crop_flip, shuffled
from pfray.data._decoded import Labelled, decoded_once
from pfray.data._subset import check_classes, keep_classes
from pfray.errors import ConfigError, DataError, nearest
from pfray.task import Split, Task
from pfray.utils import cache

SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
# The classes are numbered in the order of their names.
NAMES = tuple(sorted(name for group in SUPERCLASSES.values() for name in group))
SIZE = (32, 32)
LABEL = "fine_label"
# Part of the cache's key: changed whenever the same files would be decoded to something else.
FORMAT = 1


def build(
    path: str | None = None,
    hub: str = "uoft-cs/cifar100",
    validation_size: int = 5000,
    split_seed: int = 0,
    classes: Sequence[str] | None = None,
    superclass: str | None = None,
) -> Task:
    """CIFAR-100 as 3x32x32 uint8 images.

    path: folder with train*.parquet and test*.parquet, columns image or img, and fine_label; without it the data set
    ``hub`` is downloaded. Either is decoded once into the cache folder. validation_size: images held out of the
    training files, stratified. classes: only the images of these, numbered in this order; superclass: only those of
    the five classes of it. Training batches are padded by 4, cropped and mirrored at random.
    Raises DataError for files that are missing or damaged, ConfigError for impossible sizes and unknown classes.
    """
    check_count("validation_size", validation_size, 1)
    check_count("split_seed", split_seed, 0)
    if superclass is not None:
        if classes is not None:
            raise ConfigError("data: both classes and superclass are given. Remedy: keep one of them")
        if superclass not in SUPERCLASSES:
            raise ConfigError(
                f"data.superclass: unknown superclass {superclass!r}.{nearest(str(superclass), SUPERCLASSES)} "
                f"Allowed: {', '.join(SUPERCLASSES)}"
            )
        classes = SUPERCLASSES[superclass]
    chosen = None if classes is None else check_classes(classes, NAMES)
    everything, test = _load(None if path is None else Path(path).expanduser().absolute(), hub)
    train, validation = hold_out(everything, validation_size, split_seed, "validation_size")
    task = Task(
        name="cifar100",
        train=train,
        validation=validation,
        test=shuffled(test, split_seed),
        num_outputs=len(NAMES),
        mean=(0.507, 0.487, 0.441),
        std=(0.267, 0.256, 0.276),
        augment=partial(random_crop_flip, pad=4),
    )
    return task if chosen is None else keep_classes(task, chosen)


def _load(folder: Path | None, hub: str) -> tuple[Split, Split]:
    """(training files, test files), from the cache where it holds them."""
    files = {part: [] if folder is None else sorted(folder.glob(f"{part}*.parquet")) for part in ("train", "test")}
    if folder is not None and not all(files.values()):
        missing = next(part for part, found in files.items() if not found)
        raise DataError(f"{folder}: no {missing}*.parquet. Remedy: give data.path a folder with train*.parquet and "
                        "test*.parquet")

    def read(part: str) -> list[Labelled]:
        found = [_parquet.read_file(file, SIZE, LABEL) for file in files[part]]
        found = found or [_parquet.read_hub(hub, part, SIZE, LABEL)]
        labels = np.concatenate([own for _, own in found])
        if not len(labels) or labels.min() < 0 or labels.max() >= len(NAMES):
            raise DataError(f"{folder or hub} ({part}): holds no images with labels from 0 to {len(NAMES) - 1}. "
                            "Remedy: give data.path a folder with CIFAR-100")
        return found

    source = hub if folder is None else [cache.file_stamp(file) for found in files.values() for file in found]
    return decoded_once("cifar100", (FORMAT, str(folder), source), read)
