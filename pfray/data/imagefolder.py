"""Any images with a class each: in a folder for each class, or in parquet or tar shards, on disk or in a bucket."""

from __future__ import annotations

from collections.abc import Sequence

from pfray.data._image_settings import ImageSettings
from pfray.data._image_task import make_task
from pfray.task import Task


def build(
    path: str | None = None,
    hub: str | None = None,
    size: int = 224,
    crop: float = 0.875,
    min_area: float = 0.08,
    interpolation: str = "bilinear",
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    validation_size: int | float = 0.1,
    split_seed: int = 0,
    limit_train: int | None = None,
    classes: Sequence[str] | None = None,
    metric: str = "accuracy",
    streaming: bool | None = None,
    shuffle_buffer: int = 1000,
    num_classes: int | None = None,
) -> Task:
    """Images as 3 x ``size`` x ``size``, uint8, read when they are needed.

    path: a folder with ``train/<class>/*.jpg`` and ``val`` (or ``validation``) or ``test``, or both, in the same way;
        or a folder, or an fsspec URL of one, with parquet files or webdataset tars of these splits. hub: in place of
        it, the name of such a data set on the Hugging Face hub.
    Where there are three splits, they are used; where there are two, the second one is the test split, and the
    validation split is held out of the training images: ``validation_size``, a number or a share of them, stratified by
    class. The training images are cut to the first ``limit_train`` of those that remain, after all splits are shuffled
    by ``split_seed``.
    crop: share of the shorter side that an evaluation's central crop takes; interpolation: ``bilinear`` or ``bicubic``.
    min_area: smallest share of the area that a training's random crop takes, which is mirrored half of the time; with
        1 it is the whole image. Low for photographs, near 1 where the object fills the image or images are small.
    mean, std: of the normalization; ImageNet's.
    classes: only the images of these, numbered in this order. metric: ``accuracy`` or ``top5``.
    streaming: shards are read from where they are, in the order of the files, for a training through a buffer of
        ``shuffle_buffer`` images; whole shards are held out for validation. False prepares an uncompressed copy in the
        cache folder and reads it in pfray's own order; by default for shards on this machine. num_classes: of shards
        that do not tell.
    Damaged images are left out; more than 1 in 1,000 are an error. Raises DataError for a folder or shards of another
    form, ConfigError for impossible settings.
    """
    settings = ImageSettings(
        path, hub, size, crop, min_area, interpolation, mean, std, validation_size, split_seed, limit_train, classes,
        metric, streaming, shuffle_buffer, num_classes,
    )  # fmt: skip
    return make_task("imagefolder", settings)
