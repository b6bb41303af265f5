"""Progress of a loop, shown only if it takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")


def track(items: Iterable[T], total: int | None, label: str, delay: float = 2.0) -> Iterator[T]:
    """Yield ``items``; after ``delay`` seconds show a bar on stderr, or a plain line if stderr is no terminal."""
    start = time.monotonic()
    bar: Progress | None = None
    told = False
    try:
        for done, item in enumerate(items):
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)
            elif not told and time.monotonic() - start >= delay:
                told = True
                if sys.stderr.isatty():
                    bar = Progress(console=Console(stderr=True), transient=True)
                    bar.add_task(label, total=total)
                    bar.start()
                else:
                    print(f"{label} ...", file=sys.stderr, flush=True)
            yield item
    finally:
        if bar is not None:
            bar.stop()
