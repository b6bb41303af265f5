"""Locks behind a URL: an object store has none, but it can refuse to write a file that is there already."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pfray.bucket import Bucket
from pfray.errors import RunExists, StorageError
from pfray.patience import within

# Seconds for a store to answer at all.
PATIENCE = 20.0
# Seconds between two signs of life of a lock's owner, and how long a lock is watched for one before it is taken over.
BEAT, WATCH = 5.0, 25.0


@contextlib.contextmanager
def locked(bucket: Bucket, path: str, owner: str) -> Iterator[tuple[bool, Callable[[], bool]]]:
    """Nobody else works in what the file at ``path`` stands for. Yields (whether the lock was left by ``owner``
    itself, in a run that was killed; a function that says whether it is still ours).

    Object stores have no locks that end with their owner. So the owner rewrites the file every ``BEAT`` seconds, and
    one who finds a file that does not change for ``WATCH`` seconds takes it over. Raises RunExists, StorageError.
    """
    left = _acquire(bucket, path, owner)
    lost, ended, signing = threading.Event(), threading.Event(), threading.Lock()

    def beat() -> None:
        with signing:
            if ended.is_set() or lost.is_set():
                return
            held = bucket.read(path)
            if held is not None and _signed(held).get("owner", owner) != owner:
                lost.set()
            else:
                bucket.write(path, _sign(owner))

    try:
        with repeated(BEAT, beat):
            yield left, lambda: not lost.is_set()
    finally:
        # A sign of life that is still on its way must not come after the removal.
        with signing, contextlib.suppress(StorageError):
            ended.set()
            if not lost.is_set():
                bucket.remove(path)


def _acquire(bucket: Bucket, path: str, owner: str) -> bool:
    try:
        found = within(PATIENCE, lambda: _try(bucket, path, owner))
    except TimeoutError as error:
        raise StorageError(f"{bucket.url}: {error}. Remedy: check the address and the network") from error
    if found is None:
        return False
    left = _signed(found).get("owner") == owner
    if not left:
        end = time.monotonic() + WATCH
        while time.monotonic() < end:
            time.sleep(min(1.0, WATCH / 10))
            now = bucket.read(path)
            # What cannot be read is seen while it is being written: the next look says by whom.
            if now is not None and now != found and _signed(now):
                raise RunExists(
                    f"{bucket.url}/{path.removeprefix('.').removesuffix('.lock')} is in use by another process, on "
                    f"{_signed(now).get('host', 'another machine')}. Remedy: wait for it or stop it, or name=..."
                )
    bucket.write(path, _sign(owner))
    return left


def _try(bucket: Bucket, path: str, owner: str) -> bytes | None:
    """None where the lock is ours now; else what its file holds."""
    for _ in range(3):
        if bucket.write(path, _sign(owner), new=True):
            return None
        if (found := bucket.read(path)) is not None:
            return found
    raise StorageError(f"{bucket.url} takes and removes {path} at once. Remedy: try again")


def _sign(owner: str) -> bytes:
    return json.dumps({"owner": owner, "host": socket.gethostname(), "beat": time.time_ns()}).encode()


def _signed(content: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):  # seen while it was written
        return {}


@contextlib.contextmanager
def repeated(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Call ``action`` every so many seconds in a thread. A StorageError is logged, and the next time may go well."""
    stop = threading.Event()

    def loop() -> None:
        pause, told = seconds, False
        while not stop.wait(pause):
            started = time.monotonic()
            try:
                action()
                told = False
            except StorageError as error:
                if not told:
                    logging.getLogger("pfray").warning("%s", error)
                told = True
            # A slow store is not kept busy all the time.
            pause = max(seconds, time.monotonic() - started)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE)
