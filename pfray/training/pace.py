"""Pace of a training: images a second, and the share of the time that goes by waiting for data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

# Seconds of a training that do not count: its processes that read ahead start, and fill their queues.
BEGIN = 3.0
# Share of waiting from which it is said.
MUCH = 0.5
# Seconds between two calls of ``tell``.
PAUSE = 2.0


class Pace:
    """Watches a training, epoch by epoch. clock: seconds, for tests. tell(): called within long epochs, now and then.
    """

    def __init__(self, clock: Any = time.perf_counter) -> None:
        self.clock = clock
        self.counted_from = clock() + BEGIN
        self.tell: Callable[[], None] | None = None
        self.told = clock()
        self.begin()

    def begin(self) -> None:
        """An epoch begins."""
        self.started, self.waited, self.images, self.steps = self.clock(), 0.0, 0, 0

    def trained(self, images: int) -> None:
        """A step on so many images is done."""
        self.images, self.steps = self.images + images, self.steps + 1
        if self.tell is not None and self.clock() - self.told >= PAUSE:
            self.told = self.clock()
            self.tell()

    def watched(self, items: Iterator[T]) -> Iterator[T]:
        """The same items; the time until each of them comes is waited for data."""
        while True:
            asked = self.clock()
            try:
                item = next(items)
            except StopIteration:
                return
            now = self.clock()
            self.waited += max(0.0, now - max(asked, self.counted_from))
            yield item

    def epoch(self, world: int = 1) -> dict[str, float]:
        """``images_per_second`` of all ``world`` workers since the epoch began, and ``waiting``, the share of the time
        that this one waited for data, if enough of the epoch counts."""
        now = self.clock()
        found = {"images_per_second": round(world * self.images / max(1e-9, now - self.started), 1)}
        counted = now - max(self.started, self.counted_from)
        return {**found, "waiting": round(self.waited / counted, 3)} if counted > 0 else found


def in_words(entry: Mapping[str, Any]) -> str:
    """An epoch's pace, for the line of its loss: ``412 images/s, 63 % of it waiting for data (resources.loaders: 2)``.

    entry: of the curve: ``images_per_second``, ``waiting`` and, of data that are read batch by batch, ``loaders``;
    empty without them.
    """
    if "loaders" not in entry or "images_per_second" not in entry:
        return ""
    images, waiting = entry["images_per_second"], entry.get("waiting", 0.0)
    pace = f"{images:.0f} images/s" if images >= 10 else f"{images:.1f} images/s"
    if waiting <= MUCH:
        return pace
    return f"{pace}, {waiting:.0%} of it waiting for data (resources.loaders: {entry['loaders']})".replace("%", " %")
