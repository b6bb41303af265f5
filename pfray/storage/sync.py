"""A run whose storage is a URL: it works in a folder of this machine, and what is there is kept alike at the URL.

The URL's files are the run's; the folder here may be gone afterwards. Files are sent in an order that leaves a run
there which can be resumed whenever the sending stops: what refers to other files after those, ``summary.json`` last.
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

from pfray.config.schema import Experiment
from pfray.errors import RunExists, StorageError
from pfray.storage.remote import Bucket, is_unfinished, open_bucket
from pfray.storage.remote_lock import Lease, locked, repeated
from pfray.utils.files import write_atomically
from pfray.utils.safe_paths import inside, refuse_links_outside
from pfray.utils.url import is_url

# Seconds between two looks at what is new.
INTERVAL = 5.0
EXPERIMENT, SUMMARY = "experiment.yaml", "summary.json"
# They say what other files hold, so they are read before those and sent after them: of these states no part is missing.
INDEXES = ("search/state.json", "checkpoint_manager_snapshot.json")
# Tune's own record of a search, which is never read again.
LEFT_HERE = "tune"

Stamp = tuple[int, int, int]


@contextlib.contextmanager
def mirrored(experiment: Experiment, working: Path, *, resume: bool) -> Iterator[Callable[[], None]]:
    """Keep the run in the folder ``working`` alike at ``experiment.storage``, where that is a URL.

    At first the folder has what the URL has, whole with ``resume`` and else as much as is needed to judge it. Yields a
    function to call once the folder is open: from then on, every few seconds and at the end, the URL gets what is new.
    Raises RunExists where another machine works there, StorageError.
    """
    if not is_url(experiment.storage):
        yield lambda: None
        return
    bucket = open_bucket(experiment.storage)
    with locked(bucket, f".{experiment.name}.lock", _owner(working.parent)) as lease:
        mirror = Mirror(bucket, experiment.name, working, lease)
        # After a kill here, the files here are newer than those there; after anything else they may be older.
        if lease.left_by_us and mirror.newest.exists():
            mirror.sent = dict.fromkeys(bucket.names(experiment.name))
        else:
            mirror.fetch(whole=resume)
        with contextlib.ExitStack() as closing:

            def begin() -> None:
                if not resume:
                    mirror.clear()
                mirror.newest.touch()
                mirror.push()
                closing.enter_context(repeated(INTERVAL, mirror.push))

            try:
                yield begin
            except BaseException:
                closing.close()
                try:
                    mirror.finish()
                except StorageError as error:  # which must not hide what ended the run
                    logging.getLogger("pfray").warning("%s", error)
                raise
            closing.close()
            mirror.finish()


class Mirror:
    """The run ``name`` in ``bucket`` and its folder here. Nothing is written or removed there without the lease."""

    def __init__(self, bucket: Bucket, name: str, folder: Path, lease: Lease) -> None:
        self.bucket, self.name, self.folder, self.lease = bucket, name, folder, lease
        # What is there, by the stamp that the file here had when it was sent; None where that is not known.
        self.sent: dict[str, Stamp | None] = {}
        self.begun, self.gaps = False, lease.gaps
        # There from the moment on when the folder here has all of the run, and more than is there.
        self.newest = folder.with_name(f".{name}.newest")
        self.sending = threading.Lock()

    def fetch(self, *, whole: bool) -> None:
        """Make the folder here what is there; without ``whole``, only what says whether there is a run, and how far."""
        self.newest.unlink(missing_ok=True)
        names = self.bucket.names(self.name)
        if names and EXPERIMENT not in names:
            raise RunExists(
                f"{self.bucket.url}/{self.name} holds files but no run. Remedy: move them away, or name=... for another"
            )
        arriving = self.folder.with_name(f".{self.name}.arriving")
        _remove(arriving)
        for name in names:
            if whole or name in (EXPERIMENT, SUMMARY):
                self.bucket.get(f"{self.name}/{name}", inside(arriving, name))
        _remove(self.folder)
        if arriving.exists():
            os.replace(arriving, self.folder)
        self.sent = {name: _stamp(self.folder / name) if whole else None for name in names}

    def clear(self) -> None:
        """Remove the run that is there. Killed in the middle, it is an unfinished run, or none."""
        for name in sorted(self.bucket.names(self.name), key=lambda name: (name != SUMMARY, name == EXPERIMENT)):
            self._check_lease()
            self.bucket.remove(f"{self.name}/{name}")
        self.sent = {}

    def push(self) -> None:
        """Send what is new here, then remove there what is gone here. Raises StorageError."""
        with self.sending:
            self._check_lease()
            self.begun = True
            if self.gaps != self.lease.gaps:
                # Another one may have worked there meanwhile, and was told to stop: what is here counts.
                self.sent, self.gaps = dict.fromkeys(self.bucket.names(self.name)), self.lease.gaps
            staging = self.folder.with_name(f".{self.name}.sending")
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

    def finish(self) -> None:
        """Send the rest. Raises StorageError that says where the files are."""
        if self.begun:
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
    """A folder and all that is in it; of a link, the link."""
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
    """Put the folder's files as they are at one moment below ``staging``; returns their stamps by relative path.

    None where they change too fast; they are looked at again soon.

    Links and no copies, because files are replaced here and not changed, but for indexes and those that grow by a line.
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
            # Ray's list of checkpoints is written in place, and those that it no longer has are removed.
            if all(_stamp(folder / name) == stamps[name] for name in names if name.endswith(INDEXES[1])):
                return stamps
        except FileNotFoundError:
            continue
    return None


def _names(folder: Path) -> list[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in paths if not is_unfinished(name) and name.partition("/")[0] != LEFT_HERE]


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
    """When a file is sent: the experiment first, indexes late, the summary last."""
    return 0 if name == EXPERIMENT else 3 if name == SUMMARY else 2 if name.endswith(INDEXES) else 1


def _owner(folder: Path) -> str:
    """The name under which runs of this folder lock; another folder's is another, whatever the machine."""
    path = folder / ".owner"
    # An empty one, as a power cut could leave it, would be the same on all machines.
    if not path.exists() or not re.fullmatch("[0-9a-f]{32}", path.read_text(encoding="utf-8", errors="replace")):
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")
