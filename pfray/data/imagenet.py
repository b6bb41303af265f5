"""ImageNet of the ILSVRC 2012 (Russakovsky et al. 2015): 1.28 million images of 1,000 classes, read as needed."""

from __future__ import annotations

from collections.abc import Sequence

from pfray.data._image_settings import ImageSettings
from pfray.data._image_task import make_task
from pfray.task import Task

CLASSES = 1000


def build(
    path: str | None = None,
    hub: str | None = None,
    size: int = 224,
    crop: float = 0.875,
    min_area: float = 0.08,
    interpolation: str = "bilinear",
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    validation_size: int | float = 10_000,
    split_seed: int = 0,
    limit_train: int | None = None,
    classes: Sequence[str] | None = None,
    metric: str = "accuracy",
    streaming: bool | None = None,
    shuffle_buffer: int = 1000,
) -> Task:
    """ImageNet as 3 x ``size`` x ``size`` uint8 images. The settings are those of ``imagefolder.py``.

    path: a folder with ``train/n01440764/*.JPEG`` and ``val/n01440764/*.JPEG``, or a folder or URL with parquet or tar
    shards. hub: ``ILSVRC/imagenet-1k`` streams the shards from the Hugging Face hub, whose terms have to be accepted
    there, with a token in HF_TOKEN.
    The labels of the published test split are secret, so the published validation split, 50,000 images, is the test
    split, and ``validation_size`` images are held out of the training images for validation, the classes in equal
    proportions; of shards that are streamed, whole shards.
    Raises DataError if there are not 1,000 classes, and as ``imagefolder``.
    """
    settings = ImageSettings(
        path, hub, size, crop, min_area, interpolation, mean, std, validation_size, split_seed, limit_train, classes,
        metric, streaming, shuffle_buffer, None,
    )  # fmt: skip
    return make_task("imagenet", settings, CLASSES, ("train", "validation"))
