"""Data sets in memory: checked settings, stratified hold-out, augmentation of whole batches.

Notation: M samples in a split, N in a batch, C x H x W one image.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pfray.errors import ConfigError, DataError
from pfray.task import Split


def check_fraction(key: str, value: object) -> None:
    """Raise ConfigError unless the setting ``data.<key>`` is a number between 0 and 1, both excluded."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"data.{key}: {value!r} is not allowed: a fraction is above 0 and below 1. "
                          f"Example: data.{key}=0.2")


def check_share(key: str, value: object) -> None:
    """Raise ConfigError unless the setting ``data.<key>`` is a number above 0, and 1 at most."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"data.{key}: {value!r} is not allowed: a share is above 0, and 1 at most. "
                          f"Example: data.{key}=0.5")


def check_count(key: str, value: object, least: int) -> None:
    """Raise ConfigError unless the setting ``data.<key>`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**32:
        raise ConfigError(f"data.{key}: {value!r} is not allowed: give a whole number from {least} on")


def hold_out(split: Split, size: int, seed: int, key: str) -> tuple[Split, Split]:
    """(the rest, ``size`` samples) of ``split``, both shuffled, with the classes in equal proportions.

    split.targets: ``(M,)`` class numbers. Raises ConfigError that names the setting ``data.<key>`` if one part would
    have fewer samples than there are classes, and DataError if a class is too rare to be in both.
    """
    # Imported here because it takes longer than all other imports of an experiment with another data set.
    from sklearn.model_selection import train_test_split

    targets = split.targets.numpy()
    classes, counts = np.unique(targets, return_counts=True)
    if not len(classes) <= size <= len(split) - len(classes):
        raise ConfigError(f"data.{key}: holds out {size} of {len(split)} samples. Allowed: {len(classes)} to "
                          f"{len(split) - len(classes)}, so that every class can be on both sides")
    if counts.min() < 2:
        raise DataError(f"class {classes[counts.argmin()]} has a single sample, so data.{key} cannot hold any out. "
                        "Remedy: add samples or drop the class")
    kept, held = train_test_split(np.arange(len(split)), test_size=size, stratify=targets, random_state=seed)
    return take(split, kept), take(split, held)


def shuffled(split: Split, seed: int) -> Split:
    """The samples in an order that depends on ``seed`` alone."""
    return take(split, np.random.default_rng(seed).permutation(len(split)))


def take(split: Split, indices: np.ndarray) -> Split:
    """A copy of the samples at ``indices``, in that order."""
    chosen = torch.from_numpy(indices)
    return Split(split.inputs[chosen], split.targets[chosen])


def random_crop(inputs: Tensor, generator: torch.Generator, pad: int) -> Tensor:
    """Images ``(N, C, H, W)``, each shifted by up to ``pad`` pixels along each axis, with zeros moving in."""
    count, _, height, width = inputs.shape
    dy, dx = torch.randint(0, 2 * pad + 1, (2, count), generator=generator, device=generator.device).to(inputs.device)
    # A view of all (2 pad + 1)^2 crops of every image; indexing copies one of each, with no loop over the images.
    crops = F.pad(inputs, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(count, device=inputs.device), :, dy, dx]


def random_crop_flip(inputs: Tensor, generator: torch.Generator, pad: int) -> Tensor:
    """``random_crop`` of the images, each then mirrored left to right with probability 1/2."""
    cropped = random_crop(inputs, generator, pad)
    mirrored = torch.rand(len(inputs), generator=generator, device=generator.device).to(inputs.device) < 0.5
    return torch.where(mirrored[:, None, None, None], cropped.flip(3), cropped)
