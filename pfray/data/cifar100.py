"""CIFAR-100 (Krizhevsky 2009) from parquet files or the Hugging Face hub, whole or one of its twenty superclasses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pfray.data import _cifar, _parquet
from pfray.data._decoded import Labelled
from pfray.errors import ConfigError, DataError, nearest
from pfray.task import Task

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
LABEL = "fine_label"


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
    ``hub`` is downloaded. The images are decoded once into the cache folder. validation_size: images held out of the
    training files, stratified. classes: only the images of these, numbered in this order. superclass: only the images
    of its five classes. Training batches are padded by 4, cropped and mirrored at random.
    Raises DataError for files that are missing or damaged, ConfigError for impossible sizes and unknown classes.
    """
    if superclass is not None:
        if classes is not None:
            raise ConfigError("data: both classes and superclass are given. Remedy: keep one of them")
        if superclass not in SUPERCLASSES:
            raise ConfigError(
                f"data.superclass: unknown superclass {superclass!r}.{nearest(str(superclass), SUPERCLASSES)} "
                f"Allowed: {', '.join(SUPERCLASSES)}"
            )
        classes = SUPERCLASSES[superclass]
    return _cifar.make_task(
        "cifar100",
        NAMES,
        partial(_cifar.load, "cifar100", "CIFAR-100", path, hub, _find, _read_file, LABEL, len(NAMES)),
        mean=(0.507, 0.487, 0.441),
        std=(0.267, 0.256, 0.276),
        validation_size=validation_size,
        split_seed=split_seed,
        classes=classes,
    )


def _find(folder: Path) -> dict[str, list[Path]]:
    files = {part: sorted(folder.glob(f"{part}*.parquet")) for part in ("train", "test")}
    for part, found in files.items():
        if not found:
            raise DataError(f"{folder}: no {part}*.parquet. Remedy: give data.path a folder with train*.parquet and "
                            "test*.parquet")
    return files


def _read_file(file: Path) -> Labelled:
    return _parquet.read_file(file, _cifar.SIZE, LABEL)
