"""Checks of untrusted file names: relative paths that stay inside the folder they are joined to."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pfray.errors import StorageError, short


def flaw(name: str) -> str | None:
    """The reason why ``name`` cannot be a path below a folder; None if it can.

    A store's keys may hold any character: ``runs//etc/passwd`` is a key whose rest is an absolute path.
    """
    if not name.isprintable() or "\\" in name:
        return "a character that no path of a run has"
    if name.startswith("/"):
        return "an absolute path"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return f"the part {part!r}"
        if re.match("[A-Za-z]:", part):
            return "a drive's letter"
    return None


def inside(folder: Path, name: str) -> Path:
    """``folder / name``. Raises StorageError if it leaves the folder, by its name or through a link."""
    path = folder / name
    if reason := flaw(name):
        raise StorageError(f"{folder} cannot take a file named '{short(name)}' ({reason}). Remedy: rename it")
    try:
        real = path.resolve()
        contained = real.is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to itself
        contained = False
    if not contained:
        raise StorageError(f"{short(str(path), 200)} is a link that leads out of {folder}. Remedy: remove it")
    return path


def refuse_links_outside(folder: Path) -> None:
    """Raise StorageError if a link below ``folder`` leads out of it, where writing would change other files.

    The folder itself may be a link, because its owner chose it.
    """
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent) / name for name in (*folders, *files)):
            if path.is_symlink():
                inside(folder, path.relative_to(folder).as_posix())
