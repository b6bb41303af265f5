"""Images that cannot be decoded: left out and counted, and an error if they are too many.

An evaluation leaves a damaged image out. In a batch of a training another image of the batch takes its place, because
all workers need batches of the same size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import default_collate

from pfray.data._crops import Crop
from pfray.errors import DataError, first_line

# Largest share of damaged images in a split.
ALLOWED = 1 / 1000


class Sample(NamedTuple):
    """An image ``(3, S, S)`` with its label; without one, the ``name`` of the image and why it is ``damaged``."""

    image: Tensor | None
    label: int
    training: bool
    name: str = ""
    damaged: str = ""


class Batch(NamedTuple):
    """Samples together. images: ``(N, 3, S, S)``. labels: ``(N,)``. damaged: why, by the name of an image left out.
    """

    images: Tensor
    labels: Tensor
    damaged: dict[str, str]


def decoded(crop: Crop, encoded: bytes, label: int, name: str) -> Sample:
    """The sample of an encoded image. name: of the image, for messages."""
    try:
        return Sample(crop(encoded), label, crop.training)
    except UnidentifiedImageError:  # whose words are the address of an object
        why = "its content is of no known form" if encoded else "it is empty"
    except Exception as error:  # Pillow's plugins raise many types
        why = first_line(error)
    return Sample(None, label, crop.training, name, why)


def collate(samples: Sequence[Any]) -> Batch:
    """A batch of ``Sample``s, or of mappings that hold one each; for a training as large as they are many."""
    read: list[Sample] = [sample["sample"] if isinstance(sample, Mapping) else sample for sample in samples]
    good = [sample for sample in read if sample.image is not None]
    if good and good[0].training:
        good += [good[number % len(good)] for number in range(len(read) - len(good))]
    images = [sample.image for sample in good if sample.image is not None]
    return Batch(
        # In a process that reads ahead torch stacks them in shared memory at once, with no copy of its own.
        default_collate(images) if images else torch.empty((0, 3, 1, 1), dtype=torch.uint8),
        torch.tensor([sample.label for sample in good], dtype=torch.int64),
        {sample.name: sample.damaged for sample in read if sample.image is None},
    )


@dataclass
class Counted:
    """Inputs and targets of a ``Batch`` of the split ``name``, with a count of its damaged images.

    length: images of the split. Raises DataError when more than ALLOWED of them are damaged.
    """

    name: str
    length: int
    # As in a batch, in the order in which they were met; the words may change with the crop, and the first ones stay.
    damaged: dict[str, str] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        # Each process counts for itself.
        return type(self), (self.name, self.length)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        for name, why in batch.damaged.items():
            self.damaged.setdefault(name, why)
        if len(self.damaged) > ALLOWED * self.length:
            raise DataError(
                f"{_first(self.damaged)}, and {len(self.damaged)} of the {self.length} images of the {self.name} "
                f"data are so far; 1 in {1 / ALLOWED:.0f} may be. Remedy: copy the data again, or replace all "
                "damaged images: those for which PIL.Image.open(file).convert('RGB') fails"
            )
        return batch.images, batch.labels

    def remarks(self, world: int = 1) -> list[str]:
        """A line with the count, if there is one. world: workers of a training, which all call this and get the same.
        """
        damaged = self.damaged
        if world > 1:  # each has met those of its own batches
            parts: list[dict[str, str]] = [{}] * world
            torch.distributed.all_gather_object(parts, self.damaged)
            damaged = {name: why for part in parts for name, why in part.items()}
        if not damaged:
            return []
        return [f"{len(damaged)} of the {self.length} images of the {self.name} data left out; {_first(damaged)}"]


def _first(damaged: Mapping[str, str]) -> str:
    name, why = next(iter(damaged.items()))
    return f"{name}: the image is damaged ({why})"
