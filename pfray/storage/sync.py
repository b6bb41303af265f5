"""Synchronization of a local run folder with its URL in a store.

The files at the URL are the run; the local folder may be deleted afterwards. The run at the URL can be resumed wherever
the upload stops: a file that refers to others is sent after them, and the summary last.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pfray.errors import RunExists, StorageError
from pfray.storage.remote import Bucket, is_unfinished, open_bucket
from pfray.storage.remote_lock import Lease, locked, repeated
from pfray.storage.run_folder import EXPERIMENT, INDEXES, SUMMARY, TUNE, VIEWS, RunFolder
from pfray.utils.files import write_atomically
from pfray.utils.safe_paths import inside, refuse_links_outside

# Seconds between two uploads.
INTERVAL = 5.0

Stamp = tuple[int, int, int]


@contextlib.contextmanager
def synchronized(run: RunFolder, *, resume: bool) -> Iterator[Callable[[], None]]:
    """Synchronize the run's folder with its URL, if it has one.

    First the folder is fetched: all of it with ``resume``, otherwise only the files that tell whether there is a run.
    Yields a function to call once the folder is open. From then on new files are sent to the URL, every few seconds and
    at the end. Raises RunExists if another machine works there, StorageError if the store fails.
    """
    if run.url is None:
        yield lambda: None
        return
    bucket = open_bucket(run.url.removesuffix(f"/{run.name}"))
    with locked(bucket, run.lock.name, _owner(run.path.parent)) as lease:
        sync = FolderSync(bucket, run, lease)
        # After a kill on this machine the local files are newer; otherwise they may be older.
        if lease.was_ours and sync.newest.exists():
            sync.sent = dict.fromkeys(bucket.names(run.name))
        else:
            sync.fetch(whole=resume)
        with contextlib.ExitStack() as closing:

            def begin() -> None:
                if not resume:
                    sync.clear()
                sync.newest.touch()
                sync.push()
                closing.enter_context(repeated(INTERVAL, sync.push))

            try:
                yield begin
            except BaseException:
                closing.close()
                try:
                    sync.push_rest()
                except StorageError as error:  # must not hide the error that ended the run
                    logging.getLogger("pfray").warning("%s", error)
                raise
            closing.close()
            sync.push_rest()


class FolderSync:
    """A run in ``bucket`` and its local folder. Nothing is written or removed in the bucket without the lease."""

    def __init__(self, bucket: Bucket, run: RunFolder, lease: Lease) -> None:
        self.bucket, self.name, self.folder, self.lease = bucket, run.name, run.path, lease
        # Files in the bucket, with the stamp of the local file when it was sent; None if unknown.
        self.sent: dict[str, Stamp | None] = {}
        self.started, self.gaps = False, lease.gaps
        # newest: exists while the local folder has the whole run, and newer files than the bucket.
        self.newest, self.arriving, self.outgoing = (run.sibling(end) for end in ("newest", "arriving", "sending"))
        self.sending = threading.Lock()

    def fetch(self, *, whole: bool) -> None:
        """Replace the local folder by the bucket's. whole: all files, not only the experiment and the summary.

        Raises RunExists for files without a run, StorageError.
        """
        self.newest.unlink(missing_ok=True)
        names = self.bucket.names(self.name)
        if names and EXPERIMENT not in names:
            raise RunExists(
                f"{self.bucket.url}/{self.name} holds files but no run. Remedy: move them away, or name=... for another"
            )
        _remove(self.arriving)
        for name in names:
            if whole or name in (EXPERIMENT, SUMMARY):
                self.bucket.get(f"{self.name}/{name}", inside(self.arriving, name))
        _remove(self.folder)
        if self.arriving.exists():
            os.replace(self.arriving, self.folder)
        self.sent = {name: _stamp(self.folder / name) if whole else None for name in names}

    def clear(self) -> None:
        """Remove the run in the bucket. A kill in the middle leaves an unfinished run, or none."""
        for name in sorted(self.bucket.names(self.name), key=lambda name: (name != SUMMARY, name == EXPERIMENT)):
            self._check_lease()
            self.bucket.remove(f"{self.name}/{name}")
        self.sent = {}

    def push(self) -> None:
        """Send new files, then remove files from the bucket that are gone locally. Raises StorageError."""
        with self.sending:
            self._check_lease()
            self.started = True
            if self.gaps != self.lease.gaps:
                # Another owner may have written there before it had to stop, so every local file is sent again.
                self.sent, self.gaps = dict.fromkeys(self.bucket.names(self.name)), self.lease.gaps
            staging = self.outgoing
            try:
                if (files := _snapshot(self.folder, staging)) is None:
                    return
                for name in sorted(files, key=_turn):
                    if self.sent.get(name) != files[name]:
                        self._check_lease()
                        self.bucket.put(staging / name, f"{self.name}/{name}")
                        self.sent[name] = files[name]
                for name in sorted(self.sent.keys() - files.keys()):
                    self._check_lease()
                    self.bucket.remove(f"{self.name}/{name}")
                    del self.sent[name]
            except OSError as error:
                raise StorageError(
                    f"{staging} cannot be written ({error.strerror or error}). Remedy: free space there, or set "
                    "PFRAY_CACHE to another folder"
                ) from error
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def push_rest(self) -> None:
        """Send the remaining files at the end. Raises StorageError that names the local folder."""
        if self.started:
            self.lease.wait()
            try:
                self.push()
            except StorageError as error:
                raise StorageError(f"{error}. Until then the files are in {self.folder}") from error

    def _check_lease(self) -> None:
        if self.lease.lost:
            raise StorageError(
                f"{self.bucket.url}/{self.name} was taken over by another process, because nothing was heard of this "
                "one for too long. Remedy: leave it to that one"
            )
        if not self.lease.held():
            raise StorageError(
                f"{self.bucket.url} has not answered for so long that another process may take {self.name} over, so "
                "nothing is sent. Remedy: wait for the store, then --resume"
            )


def _remove(folder: Path) -> None:
    """Remove a folder with its content, or a link without its target."""
    try:
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be removed ({error.strerror or error}). Remedy: remove it, or set PFRAY_CACHE to another "
            "folder"
        ) from error


def _snapshot(folder: Path, staging: Path) -> dict[str, Stamp] | None:
    """Link the folder's files, at one moment, below ``staging``. Returns their stamps by relative path.

    None if they change too fast; the next upload tries again. Links suffice, because files are replaced and not
    changed, except indexes, which are copied, and files that grow by lines.
    """
    for _ in range(20):
        _remove(staging)
        staging.mkdir(parents=True)
        stamps: dict[str, Stamp] = {}
        try:
            refuse_links_outside(folder)
            names = _names(folder)
            for name in sorted(names, key=lambda name: not name.endswith(INDEXES)):
                stamps[name] = _stamp(folder / name)
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                if name.endswith(INDEXES):
                    shutil.copyfile(folder / name, staging / name)
                else:
                    _link(folder / name, staging / name)
            # Ray writes its list of checkpoints in place, and removes checkpoints that are no longer listed.
            if all(_stamp(folder / name) == stamps[name] for name in names if name.endswith(INDEXES[1])):
                return stamps
        except FileNotFoundError:
            continue
    return None


def _names(folder: Path) -> list[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in paths if not is_unfinished(name) and name.partition("/")[0] not in (TUNE, VIEWS)]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _turn(name: str) -> int:
    """Rank in the order of sending: the experiment first, indexes late, the summary last."""
    return 0 if name == EXPERIMENT else 3 if name == SUMMARY else 2 if name.endswith(INDEXES) else 1


def _owner(folder: Path) -> str:
    """Owner of the locks of this folder's runs: a name that no other folder on any machine has."""
    path = folder / ".owner"
    # An empty file, which a power cut may leave, would give all machines the same name.
    if not path.exists() or not re.fullmatch("[0-9a-f]{32}", path.read_text(encoding="utf-8", errors="replace")):
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")
