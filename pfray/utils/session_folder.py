"""Temporary folders that outlast no session: what a killed one left is removed at the start of another.

A session holds a lock in its folder, which the system releases however the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

PREFIX, LOCK = "pfray-", ".session"
# Seconds for a session to lock its new folder, and for the processes of a killed one to end.
GRACE = 60.0

_held: dict[Path, IO[bytes]] = {}


def make_session_folder(parent: str) -> Path:
    """A new folder in ``parent`` that only this user can enter. Earlier sessions' folders without a process go."""
    _sweep(Path(parent))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    _held[folder] = file = open(folder / LOCK, "wb")  # noqa: SIM115 (open for as long as the session lasts)
    with contextlib.suppress(OSError):  # without locks, as on some network folders, nobody else gets one either
        fcntl.flock(file, fcntl.LOCK_EX)
    return folder


def remove_session_folder(folder: Path) -> None:
    """Remove a folder of this process."""
    shutil.rmtree(folder, ignore_errors=True)
    _held.pop(folder).close()


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder of a worker. It is in the session's own, if there is one, and so goes with it after a kill."""
    session = os.environ.get("RAY_TMPDIR")
    return tempfile.TemporaryDirectory(dir=session if session and os.path.isdir(session) else None)


def _sweep(parent: Path) -> None:
    for lock in parent.glob(f"{PREFIX}*/{LOCK}"):
        folder = lock.parent
        with contextlib.suppress(OSError):  # another user's, or another session sweeps too
            mine = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
            if not mine or time.time() - lock.stat().st_mtime < GRACE:
                continue
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
