"""scikit-learn's handwritten digits (Alpaydin and Kaynak 1998): 1,797 images, no download, trained on in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn import functional as F

from pfray.data._arrays import check_count, check_fraction, hold_out, random_crop
from pfray.data._subset import check_classes, keep_classes
from pfray.errors import ConfigError
from pfray.task import Split, Task

NAMES = tuple("0123456789")


def build(
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    classes: Sequence[int | str] | None = None,
) -> Task:
    """Digits 0..9 as 1x32x32 uint8 images, enlarged from 8x8 by bilinear interpolation.

    The fractions are of all 1,797 images; splits are stratified and shuffled by ``split_seed``. Training images are
    shifted by up to 2 pixels. classes: only these digits, numbered in this order.
    Raises ConfigError for fractions that leave a split without some class, and for unknown classes.
    """
    chosen = None if classes is None else check_classes(classes, NAMES)
    check_fraction("validation_fraction", validation_fraction)
    check_fraction("test_fraction", test_fraction)
    check_count("split_seed", split_seed, 0)
    if validation_fraction + test_fraction >= 1:
        raise ConfigError(f"data: validation_fraction {validation_fraction} and test_fraction {test_fraction} leave "
                          "nothing to train on. Remedy: make their sum less than 1")
    everything = read_images()
    rest, test = hold_out(everything, round(test_fraction * len(everything)), split_seed, "test_fraction")
    train, validation = hold_out(
        rest, round(validation_fraction * len(everything)), split_seed, "validation_fraction"
    )
    pixels = train.inputs.double() / 255
    task = Task(
        name="digits",
        train=train,
        validation=validation,
        test=test,
        num_outputs=10,
        mean=(pixels.mean().item(),),
        std=(pixels.std().item(),),
        augment=partial(random_crop, pad=2),
    )
    return task if chosen is None else keep_classes(task, chosen)


def read_images() -> Split:
    """All digits as ``(1797, 1, 32, 32)`` uint8 images with their labels, in scikit-learn's order."""
    # Imported here because finding a data set by name imports every module of this folder.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(images).float().view(-1, 1, 8, 8) * (255 / 16)
    large = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    return Split(large.round().to(torch.uint8), torch.from_numpy(labels).long())
