"""What the user sees while a run goes on: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

# Seconds between two plain lines of one stage.
PAUSE = 5.0


class Stage:
    """One stage of a run: ``update`` with what is done of ``total``, and a few words."""

    def __init__(self, console: Console, name: str, total: int | None) -> None:
        self.console, self.name, self.total = console, name, total
        self.started = time.monotonic()
        self.last_line = self.started
        self.first_done: int | None = None
        self.bar: Bar | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self.bar = Bar(*columns, console=console)
            self.task = self.bar.add_task(name, total=total, note="")
            self.bar.start()
        else:
            self._print("started")

    def update(self, done: int, note: str = "") -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=done, note=note)
            return
        now = time.monotonic()
        self.first_done = done - 1 if self.first_done is None else self.first_done
        if now - self.last_line < PAUSE and done != self.total:
            return
        self.last_line = now
        left = ""
        if self.total and done < self.total and done > self.first_done:
            rate = (now - self.started) / (done - self.first_done)
            left = f", about {rate * (self.total - done):.0f} s left"
        self._print(f"{done}/{self.total} {note}{left}" if self.total else f"{done} {note}")

    def close(self, failed: bool) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif not failed:
            self._print(f"done in {time.monotonic() - self.started:.1f} s")

    def _print(self, text: str) -> None:
        self.console.print(f"[{self.name}] {text}", markup=False, highlight=False, soft_wrap=True)


class Progress:
    """The stages of one run, on one console, and the seconds each of them took.

    on_stage(name, running): called where a stage begins and where it ends, while it is set.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.seconds: dict[str, float] = {}
        self.on_stage: Callable[[str, bool], None] | None = None

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        stage = Stage(self.console, name, total)
        started, failed = time.monotonic(), True
        if self.on_stage is not None:
            self.on_stage(name, True)
        try:
            yield stage
            failed = False
        finally:
            stage.close(failed)
            if self.on_stage is not None:
                self.on_stage(name, False)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
