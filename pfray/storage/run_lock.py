"""Lock of a run folder against other processes of the same machine. Imports little, because it is looked at first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pfray.errors import RunExists, StorageError


def lock_file(folder: Path) -> Path:
    """The lock, next to the folder: ``--force`` removes the folder, and a new run refuses a folder with other files."""
    return folder.with_name(f".{folder.name}.lock")


def check_free(folder: Path) -> None:
    """Raise RunExists if another process works in the folder. Writes nothing."""
    lock = lock_file(folder)
    with contextlib.suppress(OSError):  # a storage that cannot be used is reported where it is to be written
        if lock.exists():
            try:
                with FileLock(lock, timeout=0):
                    pass
            except Timeout:
                raise _in_use(str(folder)) from None


@contextlib.contextmanager
def locked(folder: Path, title: str) -> Iterator[None]:
    """Lock the folder for the length of the block. The system unlocks it however this process ends.

    If the block makes no folder, nothing is left of the lock. title: the folder as its user knows it. Raises RunExists
    if another process works there, StorageError if the storage folder cannot be written.
    """
    storage = folder.parent
    missing = [path for path in (storage, *storage.parents) if not path.exists()]
    lock = FileLock(lock_file(folder), timeout=0)
    try:
        storage.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise _in_use(title) from None
    except OSError as error:
        raise StorageError(
            f"the folder {storage} cannot be written ({error.strerror or error}). "
            "Remedy: choose another with storage=..."
        ) from error
    with lock:
        try:
            yield
        finally:
            if not folder.exists():
                with contextlib.suppress(OSError):  # another run may have begun beside it
                    lock_file(folder).unlink()
                    for path in missing:
                        path.rmdir()


def _in_use(title: str) -> RunExists:
    return RunExists(f"{title} is in use by another process. Remedy: wait for it or stop it, or name=...")
