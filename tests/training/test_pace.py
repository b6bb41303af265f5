"""Pace of a training, by a clock of the test."""

from __future__ import annotations

import pytest

from pfray.training.pace import BEGIN, PAUSE, Pace, in_words


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(pace: Pace, clock: Clock, batches: int, wait: float, work: float) -> None:
    """An epoch of batches of 10 images, each of which comes after ``wait`` seconds and takes ``work``."""

    def read():
        for _ in range(batches):
            clock.now += wait
            yield None

    for _ in pace.watched(read()):
        clock.now += work
        pace.trained(10)


def test_images_a_second_are_of_the_whole_epoch_and_all_workers():
    clock = Clock()
    pace = Pace(clock)
    run(pace, clock, 20, wait=0.25, work=0.25)
    assert pace.epoch()["images_per_second"] == pytest.approx(20.0)
    assert pace.epoch(world=2)["images_per_second"] == pytest.approx(40.0)
    pace.begin()
    run(pace, clock, 20, wait=0.0, work=0.5)
    assert pace.epoch() == {"images_per_second": 20.0, "waiting": 0.0}


def test_the_first_seconds_do_not_count_as_waiting():
    clock = Clock()
    pace = Pace(clock)
    run(pace, clock, 1, wait=BEGIN, work=4.0)
    assert pace.epoch()["waiting"] == 0.0
    run(pace, clock, 1, wait=12.0, work=0.0)
    assert pace.epoch()["waiting"] == pytest.approx(0.75)


def test_of_an_epoch_within_the_first_seconds_nothing_is_said():
    clock = Clock()
    pace = Pace(clock)
    run(pace, clock, 4, wait=0.5, work=0.1)
    assert "waiting" not in pace.epoch()


def test_within_an_epoch_it_tells_now_and_then():
    clock, told = Clock(), []
    pace = Pace(clock)
    pace.tell = lambda: told.append((pace.steps, clock.now))
    run(pace, clock, 8, wait=0.0, work=PAUSE / 4)
    assert told == [(4, PAUSE), (8, 2 * PAUSE)]


@pytest.mark.parametrize(("entry", "words"), [
    ({"epoch": 1, "loss": 2.0, "images_per_second": 412.3, "waiting": 0.63}, ""),  # in memory
    ({"images_per_second": 412.3, "waiting": 0.63, "loaders": 2},
     "412 images/s, 63 % of it waiting for data (resources.loaders: 2)"),
    ({"images_per_second": 412.3, "waiting": 0.5, "loaders": 2}, "412 images/s"),
    ({"images_per_second": 0.4, "loaders": 0}, "0.4 images/s"),
    ({"epoch": 1, "loss": 2.0}, ""),
])  # fmt: skip
def test_in_words(entry, words):
    assert in_words(entry) == words
