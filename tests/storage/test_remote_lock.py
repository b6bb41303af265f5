"""Locks behind a URL: who holds one at every moment. Clocks are made up, so nothing here waits."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pfray.errors import RunExists, StorageError
from pfray.storage import remote_lock as module
from pfray.storage.remote import Bucket, open_bucket
from pfray.storage.remote_lock import BEAT, HOLD, SETTLE, WATCH, Lease, locked

LOCK = ".exp.lock"


class World:
    """One store and one clock for several processes. ``meanwhile``: what the others do while one of them sleeps."""

    def __init__(self, folder: Path) -> None:
        self.now, self.bucket = 100.0, open_bucket(f"file://{folder}/runs")
        self.meanwhile: Callable[[], None] = lambda: None

    def lease(self, owner: str, bucket: Bucket | None = None) -> Lease:
        return Lease(bucket or self.bucket, LOCK, owner, lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()

    def acquire(self, owner: str) -> Lease:
        lease = self.lease(owner)
        lease.acquire()
        return lease

    def owner(self) -> str:
        return json.loads(self.bucket.read(LOCK))["owner"]


def sign(lease: Lease) -> bytes:
    """An owner's sign of life of this moment."""
    return json.dumps({"owner": lease.owner, "host": socket.gethostname(), "beat": time.time_ns()}).encode()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_lock_is_held_by_one_and_let_go_at_the_end(world: World) -> None:
    one = world.acquire("one")
    assert one.held()
    assert not one.was_ours
    world.meanwhile = one.renew
    started = world.now
    with pytest.raises(RunExists, match=rf"exp is in use by another process, on {socket.gethostname()}\. Remedy"):
        world.acquire("two")
    assert world.now - started <= BEAT
    assert one.held()
    one.release()
    assert world.bucket.read(LOCK) is None
    assert world.acquire("two").held()


def test_an_owner_that_cannot_renew_stops_long_before_another_one_may_start(world: World) -> None:
    one = world.acquire("one")
    begun, stopped = world.now, []
    world.meanwhile = lambda: None if one.held() else stopped.append(world.now)
    two = world.acquire("two")
    assert two.held()
    assert HOLD <= stopped[0] - begun <= HOLD + 1
    assert world.now - stopped[0] >= WATCH + SETTLE - HOLD - 1 == 14
    # A lock that was left is waited for no longer than the guide says.
    assert world.now - begun <= WATCH + SETTLE + 1
    assert not one.held()
    one.renew()
    assert one.lost
    one.release()
    assert world.owner() == "two"


def test_a_renewal_counts_from_its_beginning(world: World) -> None:
    one = world.acquire("one")
    write = world.bucket.write

    def slow(self: Bucket, path: str, content: bytes, *, new: bool = False) -> bool:
        world.now += HOLD + 1
        return write(path, content, new=new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bucket, "write", slow)
        one.renew()
    assert not one.held()


def test_after_a_gap_the_owner_waits_until_any_other_one_must_have_seen_it(world: World) -> None:
    one = world.acquire("one")
    world.now += HOLD
    assert not one.held()
    one.renew()
    assert not one.held()
    assert one.gaps == 1
    for _ in range(int(HOLD / BEAT)):
        assert not one.held()
        world.now += BEAT
        one.renew()
    assert one.held()
    assert one.gaps == 1


@pytest.mark.parametrize("moment", range(0, 40))
def test_never_do_two_hold_it_however_a_late_write_of_the_former_owner_lands(world: World, moment: int) -> None:
    """The first owner's sign of life is on its way for long, and lands over that of the one that took over."""
    one, two = world.acquire("one"), world.lease("two")
    late = sign(one)
    due = world.now + moment / 40 * (WATCH + SETTLE + BEAT) + WATCH * 0.5
    held: list[tuple[bool, bool]] = []

    def meanwhile() -> None:
        nonlocal due
        if world.now >= due:
            world.bucket.write(LOCK, late)
            due = float("inf")
        held.append((one.held(), two.held()))

    world.meanwhile = meanwhile
    try:
        two.acquire()
        acquired = True
    except RunExists:
        acquired = False
    for step in range(200):
        world.sleep(0.5)
        # An owner has one sign of life on its way at a time.
        if due == float("inf") and step % 10 == 3:
            one.renew()
        if acquired and step % 10 == 7:
            two.renew()
    assert (True, True) not in held
    assert (one.held(), two.held()) in ((True, False), (False, True))
    assert world.owner() == ("one" if one.held() else "two")


@pytest.mark.parametrize("delay", [0.0, 0.5, 1.9, 2.5, 6.0])
def test_of_two_that_take_over_at_once_one_gets_it(world: World, delay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    world.bucket.write(LOCK, json.dumps({"owner": "killed", "host": "far"}).encode())
    one, two, write, outcome = world.lease("one"), world.lease("two"), Bucket.write, {}

    def write_at_last(self: Bucket, path: str, content: bytes, *, new: bool = False) -> bool:
        """The second one writes where the first has looked for the last time, and has not written yet."""
        if not new and b'"one"' in content and "two" not in outcome:
            outcome["two"] = None
            now = world.now
            try:
                two.acquire()
                outcome["two"] = "held"
            except RunExists:
                outcome["two"] = "in use"
            # Both run at the same time; what the first one's write took is all that has passed for it.
            world.now = now + delay
        return write(self, path, content, new=new)

    monkeypatch.setattr(Bucket, "write", write_at_last)
    if delay > SETTLE:
        with pytest.raises(StorageError, match="answers too slowly for a lock to be taken over"):
            one.acquire()
        assert not one.held()
    else:
        one.acquire()
        assert one.held()
    two.renew()
    assert not two.held()


def test_one_whose_name_is_written_over_while_it_takes_over_gives_up(world: World) -> None:
    world.bucket.write(LOCK, json.dumps({"owner": "killed", "host": "far"}).encode())

    def write_over() -> None:
        if world.owner() == "one":
            world.bucket.write(LOCK, world.lease("two")._sign())

    world.meanwhile = write_over
    with pytest.raises(RunExists, match="in use by another process"):
        world.acquire("one")
    assert world.owner() == "two"


def test_a_lock_that_is_gone_is_lost_and_not_made_again(world: World) -> None:
    """Another one has taken the run over, finished it, and let go."""
    one = world.acquire("one")
    world.bucket.remove(LOCK)
    one.renew()
    assert one.lost
    assert not one.held()
    assert world.bucket.read(LOCK) is None


def test_a_watcher_that_slept_looks_again_before_it_takes_over(world: World) -> None:
    world.acquire("killed")
    third: list[Lease] = []

    def sleep_for_an_hour() -> None:
        if not third:
            world.now += 3600
            world.bucket.write(LOCK, world.lease("third")._sign())
            third.append(world.lease("third"))

    world.meanwhile = sleep_for_an_hour
    with pytest.raises(RunExists, match="in use by another process"):
        world.acquire("two")
    assert world.owner() == "third"


def test_a_lock_seen_while_its_owner_writes_it_is_looked_at_again(world: World) -> None:
    one = world.acquire("one")
    torn = iter([b"", b'{"owner": "he'])

    def half_written() -> None:
        content = next(torn, None)
        world.bucket.write(LOCK, sign(one) if content is None else content)

    world.meanwhile = half_written
    with pytest.raises(RunExists, match=rf"in use by another process, on {socket.gethostname()}\."):
        world.acquire("two")
    assert next(torn, None) is None


def test_a_lock_that_is_let_go_of_meanwhile_is_taken_at_once(world: World) -> None:
    one = world.acquire("one")
    started, releases = world.now, iter([one.release])
    world.meanwhile = lambda: next(releases, lambda: None)()
    assert world.acquire("two").held()
    assert world.now - started <= 1 + SETTLE


def test_a_lock_that_a_killed_run_of_the_same_folder_left_is_taken_without_a_watch(world: World) -> None:
    world.acquire("here")
    started = world.now
    again = world.acquire("here")
    assert again.was_ours
    assert again.held()
    assert world.now - started == SETTLE


def test_waiting_ends_when_the_lease_is_held_again_or_lost(world: World) -> None:
    one = world.acquire("one")
    started = world.now
    one.wait()
    assert world.now == started
    world.now += HOLD
    world.meanwhile = one.renew
    one.wait()
    assert one.held()
    assert world.now - started - HOLD <= HOLD + 1
    world.now += HOLD
    world.meanwhile = lambda: None
    started = world.now
    one.wait()
    assert WATCH <= world.now - started <= WATCH + 1


def test_what_a_foreign_lock_says_of_its_machine_is_shown_in_one_line(world: World) -> None:
    world.bucket.write(LOCK, json.dumps({"owner": "x", "host": "a\n\x1b[2J" + 200 * "b"}).encode())
    world.meanwhile = lambda: world.bucket.write(LOCK, world.bucket.read(LOCK) + b" ")
    with pytest.raises(RunExists, match=r"on a\\n\\x1b\[2Jb+ \.\.\. b+\. Remedy") as error:
        world.acquire("two")
    assert len(str(error.value)) < 300


def test_an_owner_gives_signs_of_life_by_itself_until_it_lets_go(world: World, monkeypatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    with locked(world.bucket, LOCK, "here") as lease:
        first, end = world.bucket.read(LOCK), time.monotonic() + 20
        while world.bucket.read(LOCK) in (first, b"") and time.monotonic() < end:
            pass
        assert world.bucket.read(LOCK) not in (first, None)
        assert lease.held()
    assert world.bucket.read(LOCK) is None


def test_a_store_that_does_not_answer_is_an_error_and_no_wait(world: World, monkeypatch) -> None:
    # The first answer, the watch over a lock, and a little for the rest.
    assert max(module.ANSWER_TIMEOUT, WATCH + SETTLE) <= 25
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(Bucket, "write", lambda *args, **options: silent.accept())
        monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.2)
        with pytest.raises(StorageError, match=r"/runs: no answer within 0 s\. Remedy: check the address"):
            world.acquire("me")
