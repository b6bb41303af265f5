"""CIFAR-10 in small, as parquet files and as pickles."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (100, 32, 32, 3), np.uint8)
TEST = RNG.integers(0, 256, (20, 32, 32, 3), np.uint8)
SMALL: dict[str, Any] = {"validation_size": 20}


def encode(pixels: np.ndarray, form: str = "PNG") -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return {"bytes": buffer.getvalue(), "path": None}


def write_parquet(path: Path, images: list, labels: list, column: str = "image", label: str = "label") -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    datasets.Dataset.from_dict({column: images, label: labels}).to_parquet(path)


def write_pickle(path: Path, images: np.ndarray, **changes: Any) -> None:
    batch = {
        b"batch_label": b"training batch",
        b"data": np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), 3072),
        b"labels": [i % 10 for i in range(len(images))],
    }
    batch.update({key.encode(): value for key, value in changes.items()})
    path.write_bytes(pickle.dumps(batch, protocol=2))


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]
