"""Small data sets of images on disk: class folders, parquet and tar shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pfray.task import Samples

CLASSES = ("cat", "dog", "eel")


def picture(label: int, number: int, size: tuple[int, int] = (12, 10), classes: int = 3) -> Image.Image:
    """A picture in its class's colour channel, brighter at the top, with some noise."""
    rng = np.random.default_rng(1000 * label + number)
    pixels = rng.integers(0, 60, (size[1], size[0], 3))
    pixels[..., label % 3] += np.linspace(190, 100 + 80 // classes * (label // 3), size[1]).astype(int)[:, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def make_folder(
    root: Path, counts: Mapping[str, int], classes: Sequence[str] = CLASSES, size: tuple[int, int] = (12, 10)
) -> Path:
    """``counts`` images of each class in ``root/<split>/<class>/``."""
    for split, count in counts.items():
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                seen = number + 100_000 * sorted(counts).index(split)
                (folder / f"{number:05d}.jpg").write_bytes(encoded(picture(label, seen, size, len(classes))))
    return root


def records(count: int, classes: int = 3, first: int = 0, size: tuple[int, int] = (12, 10)) -> list[tuple[bytes, int]]:
    """(encoded image, label) of ``count`` pictures, the classes in turns."""
    return [
        (encoded(picture(number % classes, first + number, size, classes)), number % classes)
        for number in range(count)
    ]


def write_parquet(
    path: Path, samples: Sequence[tuple[bytes, int]], columns: tuple[str, str] = ("image", "label"),
    names: Sequence[str] | None = None,
) -> Path:  # fmt: skip
    """A parquet shard as the hub has them; ``names`` of the classes are in its schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image, label = columns
    data = {image: [{"bytes": data, "path": None} for data, _ in samples], label: [number for _, number in samples]}
    table = pa.table(data, pa.schema({
        image: pa.struct({"bytes": pa.binary(), "path": pa.string()}), label: pa.int64(),
    }))  # fmt: skip
    if names is not None:
        import datasets

        features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(names))})
        table = table.cast(features.arrow_schema)
    pq.write_table(table, path)
    return path


def write_tar(
    path: Path, samples: Sequence[tuple[bytes, int]], columns: tuple[str, str] = ("jpg", "cls"), first: int = 0
) -> Path:
    """A webdataset tar: ``00000.jpg`` and ``00000.cls`` of each sample. first: number of the first one; samples above 0
    are added to the tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "a" if first else "w") as tar:
        for number, (data, label) in enumerate(samples, first):
            for suffix, content in zip(columns, (data, str(label).encode()), strict=True):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def epoch(split: Samples, size: int, seed: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Any, Any]]:
    """One worker's part of each batch of an epoch."""
    return (batch for batches in split.epochs(size, [seed], rank, world) for batch in batches)
