"""The python version of CIFAR-10 (Krizhevsky 2009): pickled dicts of ``data`` (M, 3072) and ``labels`` (M)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from pfray.errors import DataError

REMEDY = "Remedy: unpack cifar-10-python.tar.gz again"


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]
# Everything that a pickled array needs, by its names in old and new versions of numpy and Python.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
    ("numpy._core.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    ("builtins", "bytes"): bytes,
    ("__builtin__", "bytes"): bytes,
}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler for arrays only; a pickle can otherwise call anything that it names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR-10 file does")
        return ALLOWED[module, name]


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """``(M, 3, 32, 32)`` uint8 images and ``(M,)`` int64 labels of one batch file. Raises DataError."""
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
    except FileNotFoundError:
        raise DataError(f"{path}: the file is missing. {REMEDY}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a CIFAR-10 pickle, or damaged ({reason}). {REMEDY}") from error
    if not isinstance(batch, dict):
        raise DataError(f"{path}: holds a {type(batch).__name__}, not a dict with data and labels. {REMEDY}")
    fields = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, labels = fields.get("data"), fields.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(f"{path}: 'data' is not an (M, 3072) array of bytes. {REMEDY}")
    if not isinstance(labels, list | np.ndarray) or len(labels) != len(data):
        raise DataError(f"{path}: 'labels' is not a list of {len(data)} class numbers. {REMEDY}")
    try:
        numbers = np.asarray(labels, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{path}: 'labels' holds something else than class numbers. {REMEDY}") from None
    return data.reshape(-1, 3, 32, 32), numbers.reshape(-1)
