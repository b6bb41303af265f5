"""Images in a folder for each class, ``folder/<class>/<image>``, listed once.

The listing is a file in the cache folder that every process maps into its memory: what travels to a worker is its key.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pfray.data._track import track
from pfray.errors import DataError, StorageError, first_line
from pfray.utils import cache
from pfray.utils.files import write_atomically

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Part of the cache's key: changed whenever the same folders would be listed as something else.
FORMAT = 2


@dataclass(frozen=True)
class ClassFolders:
    """Images of the class folders ``names`` in ``folder``, those of class i with the label i, sorted by name.

    Hidden files, whose names begin with a dot, are passed over. key: of the listing, from the class folders' names and
    times. Raises DataError for a class folder without images, or with folders in it.
    """

    folder: Path
    names: tuple[str, ...]
    key: str

    def __len__(self) -> int:
        return len(self._listing)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.names, self.key)

    def labels(self) -> np.ndarray:
        """Class numbers ``(M,)``, int64."""
        return self._listing["label"].to_numpy()

    def read(self, index: int) -> tuple[bytes, int, str]:
        """(the file, its label, its path) of an image. Raises StorageError."""
        name, label = (self._listing[column][index].as_py() for column in ("file", "label"))
        path = self.folder / self.names[label] / os.fsdecode(name)
        try:
            return path.read_bytes(), label, str(path)
        except OSError as error:
            raise StorageError(f"{path}: the image cannot be read ({first_line(error)}). Remedy: restore it, or start "
                               "a new run on the folder as it is now") from error

    @cached_property
    def _listing(self) -> pa.Table:
        path = cache.cache_dir() / f"images-{self.key}.arrow"
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid):  # not listed yet, on this machine or at all
            write_atomically(path, self._listed())
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def _listed(self) -> bytes:
        if _key(self.folder, self.names) != self.key:
            raise DataError(f"{self.folder}: the class folders have changed since the run began. Remedy: start a new "
                            "run")
        files: list[bytes] = []
        labels: list[np.ndarray] = []
        for label, name in enumerate(track(self.names, len(self.names), f"listing {self.folder}")):
            found = _images(self.folder / name)
            files += map(os.fsencode, found)
            labels.append(np.full(len(found), label, np.int64))
        sink = pa.BufferOutputStream()
        # One batch, so that an image is found without a search.
        batch = pa.record_batch([pa.array(files, pa.large_binary()), np.concatenate(labels)], ["file", "label"])
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return sink.getvalue().to_pybytes()


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of the class folders in ``folder``, sorted. Raises DataError."""
    try:
        with os.scandir(folder) as entries:
            return tuple(sorted(each.name for each in entries if each.is_dir() and not each.name.startswith(".")))
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror}). Remedy: permission to read it, or "
                        "another data.path") from error


def class_folders(folder: Path, names: Sequence[str]) -> ClassFolders:
    """The images of the classes ``names``, which are numbered in this order. Raises DataError."""
    return ClassFolders(folder, tuple(names), _key(folder, names))


def _key(folder: Path, names: Sequence[str]) -> str:
    """From the time of each class folder, which changes when a file is added, removed or renamed."""
    return cache.cache_key(FORMAT, str(folder), [(name, (folder / name).stat().st_mtime_ns) for name in names])


def _images(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            # macOS puts a ._name.jpg beside each file that it copies.
            seen = [each for each in entries if not each.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror}). Remedy: permission to read it"
                        ) from error
    if inner := min((each.name for each in seen if each.is_dir(follow_symlinks=False)), default=None):
        raise DataError(f"{folder / inner}: a folder within a class folder, whose images would be missing. Remedy: "
                        "move its images to the class folder, or make it a class of its own")
    found = sorted(each.name for each in seen if each.name.lower().endswith(SUFFIXES))
    if not found:
        raise DataError(f"{folder}: the class has no images ({', '.join(SUFFIXES)}). Remedy: put some into it, or "
                        "remove the class from every split")
    return found


def looks_like_split(folder: Path) -> bool:
    """True for a folder whose folders have images in them."""
    return folder.is_dir() and any(each.name.lower().endswith(SUFFIXES) for each in folder.glob("[!.]*/[!.]*"))
