"""Locks behind a URL: an object store has none, but it can refuse to write a file that is there already.

Such a lock does not end with its owner, so it is a lease. The owner rewrites the file every ``BEAT`` seconds, and one
who finds a file that does not change for ``WATCH`` seconds takes it over. No two may believe that they have it:

- An owner counts on it for ``HOLD`` seconds from the beginning of its last renewal, and asks right before every write.
  A watcher has seen that renewal, so it waits ``WATCH`` from a later moment on. Between the two lie
  ``WATCH + SETTLE - HOLD`` = 15 seconds for a write that was under way.
- A new owner reads its own name again after ``SETTLE`` seconds, before it counts on it: of two that take over at once,
  the later write is the one that is read. Who was slower than that from its last look to its write gives up.
- An owner that could not renew for ``HOLD`` may have been replaced meanwhile, by one whose name it writes over when the
  store answers again. The other one sees that at its next renewal, or stops after ``HOLD`` without one; so the former
  owner counts on the lease only ``HOLD`` after it renewed, if it is still the one named there.

What this cannot rule out is a single write that a store takes in later than those 15 seconds. Clocks are not compared:
each process measures spans by its own, which runs on while the machine sleeps.
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
# Seconds between two renewals by an owner; that a renewal counts; that a lock is watched for a renewal before it is
# taken over; and from then until the new owner counts on it.
BEAT, HOLD, WATCH, SETTLE = 5.0, 10.0, 23.0, 2.0


def _clock() -> float:
    """Seconds, including sleep of the machine where the system counts it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@contextlib.contextmanager
def locked(bucket: Bucket, path: str, owner: str) -> Iterator[Lease]:
    """Hold the lock at ``path`` for the length of the block.

    Raises RunExists where another process holds it, StorageError.
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

    left_by_us: the same owner left the lock, in a run that was killed.
    gaps: how often another owner may have held it in between, so that the written files are to be checked again.
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
        self.left_by_us, self.lost, self.gaps = False, False, 0
        self._ended = False
        self._renewed, self._counts_from = float("-inf"), float("-inf")
        # A sign of life that is still on its way must not come after the removal.
        self._signing = threading.Lock()

    def acquire(self) -> None:
        """Raises RunExists where another owner gives signs of life, StorageError where the store does not answer."""
        started = self.clock()
        try:
            found = with_timeout(ANSWER_TIMEOUT, self._create)
        except TimeoutError as error:
            raise StorageError(f"{self.bucket.url}: {error}. Remedy: check the address and the network") from error
        if found is not None:
            self.left_by_us = _signed(found).get("owner") == self.owner
            started = self.clock() if self.left_by_us else self._watch(found)
            self._take_over(started)
        self._renewed = started

    def held(self) -> bool:
        """True while the owner may count on the lease. To be asked right before every write."""
        now = self.clock()
        return not self.lost and self._counts_from <= now < self._renewed + HOLD

    def renew(self) -> None:
        """Renew the lock file, or find that the lease is lost. Raises StorageError where the store does not answer."""
        with self._signing:
            if self._ended or self.lost:
                return
            started = self.clock()
            content = self.bucket.read(self.path)
            # What cannot be read is one's own, torn. Nothing at all: another one has come and gone.
            if content is None or _signed(content).get("owner", self.owner) != self.owner:
                self.lost = True
                return
            self.bucket.write(self.path, self._sign())
            if started >= self._renewed + HOLD:
                self.gaps += 1
                self._counts_from = self.clock() + HOLD
            self._renewed = started

    def wait(self) -> None:
        """Return once the lease is held or lost, or when it has been neither for ``WATCH`` seconds."""
        end = self.clock() + WATCH
        while not self.held() and not self.lost and self.clock() < end:
            self.sleep(BEAT / 10)

    def release(self) -> None:
        with self._signing, contextlib.suppress(StorageError):
            self._ended = True
            if self.held():
                self.bucket.remove(self.path)

    def _create(self) -> bytes | None:
        """None where the lock is ours now; otherwise the content of its file."""
        for _ in range(3):
            if self.bucket.write(self.path, self._sign(), new=True):
                return None
            if (found := self.bucket.read(self.path)) is not None:
                return found
        raise StorageError(f"{self.bucket.url} takes and removes {self.path} at once. Remedy: try again")

    def _watch(self, found: bytes) -> float:
        """Time of the last look at a lock that was not renewed for ``WATCH`` seconds."""
        end = self.clock() + WATCH
        while True:
            self.sleep(min(1.0, WATCH / 10))
            looked = self.clock()
            now = self.bucket.read(self.path)
            if now is None:  # let go of
                now = self._create()
                if now is None:
                    return looked
            # What cannot be read is seen while it is being written: the next look says by whom.
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
    except (ValueError, TypeError, RecursionError):  # seen while it was written, or no lock of ours
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
        thread.join(ANSWER_TIMEOUT)
