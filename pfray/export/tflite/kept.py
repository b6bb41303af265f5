"""The uncompressed model's ``.tflite``, converted once and kept in the cache.

A run needs it up to three times: for the latency curve, to time plans in turns with it, and as ``teacher.tflite``.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

from torch import nn

from pfray.export.tflite import convert
from pfray.nn.fingerprint import model_parts
from pfray.task import Task, example_input
from pfray.utils.cache import cache_dir, cache_key
from pfray.utils.files import read_json, write_json


def teacher_file(model: nn.Module, task: Task) -> Path:
    """The model's file in the cache. It is converted if the cache has none, or a damaged one.

    Raises ExportError if the model cannot be converted, StorageError if the cache cannot be written.
    """
    path = cache_dir() / "tflite" / f"{cache_key(*model_parts(model, task), _converter())}.tflite"
    checksum = path.with_suffix(".json")
    known = read_json(checksum)
    if known is None or not path.is_file() or known.get("sha256") != _sha256(path):
        convert.export(model, example_input(task), path)
        write_json(checksum, {"sha256": _sha256(path)})
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _converter() -> str:
    """Version of litert-torch: another one may write another file."""
    try:
        return importlib.metadata.version("litert-torch")
    except importlib.metadata.PackageNotFoundError:
        return ""
