"""Labelled images in parquet files or on the Hugging Face hub, read by the ``datasets`` library, decoded by Pillow."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pfray.data._track import track
from pfray.errors import DataError, first_line

IMAGE_COLUMNS = ("image", "img")


def read_file(path: Path, size: tuple[int, int], label: str = "label") -> tuple[np.ndarray, np.ndarray]:
    """``(M, 3, H, W)`` uint8 images and ``(M,)`` int64 labels of one parquet file.

    size: (H, W) that every image must have. label: name of the labels' column. Images are in a column ``image`` or
    ``img``, a struct whose ``bytes`` is an encoded image. Raises DataError.
    """
    # Imported here because finding a data set by name imports every module of this folder.
    import datasets

    with quiet():
        try:
            # Streamed, because otherwise the library copies the file into its own cache first.
            rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
            return _decode(_records(rows, rows.features, str(path), label), None, str(path), size)
        except DataError:
            raise
        except Exception as error:  # pyarrow and fsspec raise many types
            raise DataError(f"{path}: not a parquet file, or damaged ({first_line(error)}). Remedy: copy the file "
                            "again, or give data.path another folder") from error


def read_hub(name: str, split: str, size: tuple[int, int], label: str = "label") -> tuple[np.ndarray, np.ndarray]:
    """As ``read_file``, for one split of a data set on the hub. Raises DataError if the download fails."""
    import datasets

    with quiet():
        try:
            rows = datasets.load_dataset(name, split=split)
        except Exception as error:  # the hub's client raises many types, by cause
            raise DataError(f"'{name}' ({split}) cannot be downloaded from the Hugging Face hub ({first_line(error)}). "
                            "Remedy: give data.path, a folder with the data set's files") from error
        return _decode(_records(rows, rows.features, name, label), len(rows), f"{name} ({split})", size)


def _records(rows: Any, features: Any, where: str, target: str) -> Iterator[tuple[bytes, int]]:
    """(encoded image, label) of every row; the columns are checked first."""
    import datasets

    names = list(features or {})
    column = next((name for name in IMAGE_COLUMNS if name in names), None)
    if column is None or target not in names:
        raise DataError(f"{where}: columns are {', '.join(names)}. Remedy: name them image (or img) and {target}")
    if isinstance(features[column], datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    for batch in rows.iter(batch_size=500):
        for image, label in zip(batch[column], batch[target], strict=True):
            if not isinstance(image, dict) or not isinstance(image.get("bytes"), bytes):
                raise DataError(f"{where}: column {column} holds no encoded images (a struct with a field bytes). "
                                "Remedy: store the files' bytes")
            if not isinstance(label, int):
                raise DataError(f"{where}: label {label!r} is not a class number. Remedy: store whole numbers in "
                                f"column {target}")
            yield image["bytes"], label


def _decode(
    records: Iterator[tuple[bytes, int]], total: int | None, where: str, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    images: list[np.ndarray] = []
    labels: list[int] = []
    for data, label in track(records, total, f"decoding {where}"):
        try:
            with Image.open(io.BytesIO(data)) as image:
                found = (image.height, image.width)
                # Compared before the pixels are decoded: a small file can claim a huge image.
                pixels = np.asarray(image.convert("RGB")) if found == size else None
        except Exception as error:  # Pillow's plugins raise many types
            raise DataError(f"{where}: image {len(images)} cannot be decoded ({first_line(error)}). "
                            "Remedy: copy the file again") from error
        if pixels is None:
            raise DataError(f"{where}: image {len(images)} is {found[0]}x{found[1]}, not {size[0]}x{size[1]}. "
                            "Remedy: resize the images or choose another data set")
        images.append(pixels)
        labels.append(label)
    stacked = np.stack(images) if images else np.empty((0, *size, 3), np.uint8)
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)), np.asarray(labels, dtype=np.int64)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the libraries' progress bars and log lines; the error alone reports a failure."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub", "httpx")]
    levels = [logger.level for logger in loggers]
    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
