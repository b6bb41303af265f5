"""Locks in an object store, which has none, but can refuse to overwrite a file.

Such a lock does not end with its owner, so it is a lease. The owner rewrites the file every ``BEAT`` seconds. A process
that finds the file unchanged for ``WATCH`` seconds takes the lease over. Two processes never believe that they hold it:

- An owner holds the lease for ``HOLD`` seconds from the start of its last renewal, and checks this before every write.
  A watcher has seen that renewal, so its ``WATCH`` seconds start later. This leaves ``WATCH + SETTLE - HOLD`` = 15
  seconds for a write under way.
- A new owner reads the file again after ``SETTLE`` seconds, before it relies on the lease: if two take over at once,
  both read the later write. A process that took longer than ``SETTLE`` from its last look to its write gives up.
- An owner that could not renew for ``HOLD`` seconds may have been replaced, and may overwrite the new owner's name when
  the store answers again. The new owner sees that at its next renewal, or stops after ``HOLD`` seconds without one.
  Therefore the former owner waits ``HOLD`` seconds after its renewal, and relies on the lease if its name is there.

A single write that the store applies more than 15 seconds late is not ruled out. Clocks of machines are not compared:
each process measures time spans with its own clock, which runs on while the machine sleeps.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pfray.errors import RunExists, StorageError, short
from pfray.storage.remote import Bucket
from pfray.utils.timeout import with_timeout

# Seconds for a store to answer at all.
ANSWER_TIMEOUT = 20.0
# Seconds between two renewals; that a renewal counts; that a lock is watched for a renewal before it is taken over; and
# from then until the new owner relies on it.
BEAT, HOLD, WATCH, SETTLE = 5.0, 10.0, 23.0, 2.0


def _clock() -> float:
    """Seconds, including the machine's sleep if the system counts it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@contextlib.contextmanager
def locked(bucket: Bucket, path: str, owner: str) -> Iterator[Lease]:
    """Hold the lock at ``path`` for the length of the block.

    Raises RunExists if another process holds it, StorageError if the store fails.
    """
    lease = Lease(bucket, path, owner)
    lease.acquire()
    try:
        with repeated(BEAT, lease.renew):
            yield lease
    finally:
        lease.release()


class Lease:
    """The lock file at ``path`` in ``bucket``, for ``owner``.

    was_ours: this owner found its own lock, from a run that was killed.
    gaps: times that another owner may have held it in between; after each, the written files must be checked again.
    """

    def __init__(
        self,
        bucket: Bucket,
        path: str,
        owner: str,
        clock: Callable[[], float] = _clock,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bucket, self.path, self.owner, self.clock, self.sleep = bucket, path, owner, clock, sleep
        self.was_ours, self.lost, self.gaps = False, False, 0
        self._ended = False
        self._renewed, self._counts_from = float("-inf"), float("-inf")
        # A renewal under way must not come after the removal.
        self._signing = threading.Lock()

    def acquire(self) -> None:
        """Take the lock. Raises RunExists if another owner renews it, StorageError if the store does not answer."""
        started = self.clock()
        try:
            found = with_timeout(ANSWER_TIMEOUT, self._create)
        except TimeoutError as error:
            raise StorageError(f"{self.bucket.url}: {error}. Remedy: check the address and the network") from error
        if found is not None:
            self.was_ours = _signed(found).get("owner") == self.owner
            started = self.clock() if self.was_ours else self._watch(found)
            self._take_over(started)
        self._renewed = started

    def held(self) -> bool:
        """True while the owner may rely on the lease. Must be checked right before every write."""
        now = self.clock()
        return not self.lost and self._counts_from <= now < self._renewed + HOLD

    def renew(self) -> None:
        """Renew the lock file, or set ``lost``. Raises StorageError if the store does not answer."""
        with self._signing:
            if self._ended or self.lost:
                return
            started = self.clock()
            content = self.bucket.read(self.path)
            # An unreadable file is this owner's own, half written. A missing one: another owner has come and gone.
            if content is None or _signed(content).get("owner", self.owner) != self.owner:
                self.lost = True
                return
            self.bucket.write(self.path, self._sign())
            if started >= self._renewed + HOLD:
                self.gaps += 1
                self._counts_from = self.clock() + HOLD
            self._renewed = started

    def wait(self) -> None:
        """Wait until the lease is held or lost, at most ``WATCH`` seconds."""
        end = self.clock() + WATCH
        while not self.held() and not self.lost and self.clock() < end:
            self.sleep(BEAT / 10)

    def release(self) -> None:
        """Stop renewing, and remove the lock file if the lease is held."""
        with self._signing, contextlib.suppress(StorageError):
            self._ended = True
            if self.held():
                self.bucket.remove(self.path)

    def _create(self) -> bytes | None:
        """None if the lock is ours now; otherwise the content of its file."""
        for _ in range(3):
            if self.bucket.write(self.path, self._sign(), new=True):
                return None
            if (found := self.bucket.read(self.path)) is not None:
                return found
        raise StorageError(f"{self.bucket.url} takes and removes {self.path} at once. Remedy: try again")

    def _watch(self, found: bytes) -> float:
        """Time of the last look at a lock not renewed for ``WATCH`` seconds. Raises RunExists if it is renewed."""
        end = self.clock() + WATCH
        while True:
            self.sleep(min(1.0, WATCH / 10))
            looked = self.clock()
            now = self.bucket.read(self.path)
            if now is None:  # released
                now = self._create()
                if now is None:
                    return looked
            # An unreadable file is being written; the next look shows by whom.
            if now != found and _signed(now):
                raise self._in_use(now)
            if looked >= end:
                return looked

    def _take_over(self, looked: float) -> None:
        sign = self._sign()
        self.bucket.write(self.path, sign)
        if self.clock() - looked > SETTLE:
            raise StorageError(f"{self.bucket.url} answers too slowly for a lock to be taken over. Remedy: try again")
        self.sleep(SETTLE)
        now = self.bucket.read(self.path)
        if now != sign:
            raise self._in_use(now or b"")

    def _in_use(self, content: bytes) -> RunExists:
        host = short(str(_signed(content).get("host", "another machine")))
        return RunExists(
            f"{self.bucket.url}/{self.path.removeprefix('.').removesuffix('.lock')} is in use by another process, on "
            f"{host}. Remedy: wait for it or stop it, or name=..."
        )

    def _sign(self) -> bytes:
        return json.dumps({"owner": self.owner, "host": socket.gethostname(), "beat": time.time_ns()}).encode()


def _signed(content: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError, RecursionError):  # half written, or no lock of pfray's
        return {}


@contextlib.contextmanager
def repeated(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Call ``action`` in a thread, every ``seconds``. A StorageError is logged, and the calls continue."""
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
            # A slow store gets pauses as long as its answers take.
            pause = max(seconds, time.monotonic() - started)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(ANSWER_TIMEOUT)
