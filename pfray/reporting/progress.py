"""Progress of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pfray.reporting.observers import Observer, SearchState

# Seconds between two plain lines of one stage at its begin, and in a stage that takes hours.
PAUSE = 5.0
LONGEST = 60.0
# Seconds of a stage within which it tells of what an earlier session did.
AT_ONCE = 3.0


class Progress(Observer):
    """Shows stages and notes on one console; with ``stages`` False notes only."""

    def __init__(self, console: Console | None = None, *, stages: bool = True) -> None:
        self.console, self.stages = console or Console(), stages
        self.lines: dict[str, _Line] = {}

    def stage_started(self, stage: str, total: int | None) -> None:
        if self.stages:
            self.lines[stage] = _Line(self.console, stage, total)

    def stage_advanced(self, stage: str, done: float, words: str) -> None:
        if line := self.lines.get(stage):  # None if a thread is late
            line.update(done, words)

    def stage_ended(self, stage: str, seconds: float, failed: bool) -> None:
        if line := self.lines.pop(stage, None):
            line.close(seconds, failed)

    def trial_finished(self, search: SearchState) -> None:
        best, failed = search.best, search.failed
        score = best and (search.best_text or f"{best['score']:.4f}")
        words = f"best {score} ({best['origin']})" if best else "no score yet"
        self.stage_advanced(search.stage, len(search.records), words + (f", {failed} failed" if failed else ""))

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Line:
    """The line, or lines, of one stage."""

    def __init__(self, console: Console, name: str, total: int | None) -> None:
        self.console, self.name, self.total = console, name, total
        self.started = time.monotonic()
        self.last_line = self.started
        self.counted_from = self.started
        self.first_done: float | None = None
        self.bar: Bar | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[words]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self.bar = Bar(*columns, console=console)
            self.task = self.bar.add_task(name, total=total, words="")
            self.bar.start()
        else:
            self._print("started")

    def update(self, done: float, words: str) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=done, words=words)
            return
        now = time.monotonic()
        # Work of an earlier session does not count for the rate. Its epochs are told at once, its trials with the next.
        if now - self.started < AT_ONCE:
            self.first_done, self.counted_from = done, now
        elif self.first_done is None:
            self.first_done = math.ceil(done) - 1
        if now - self.last_line < min(LONGEST, max(PAUSE, (now - self.started) / 20)) and done != self.total:
            return
        self.last_line = now
        left = ""
        if self.total and done < self.total and done > self.first_done:
            rate = (now - self.counted_from) / (done - self.first_done)
            left = f", about {rate * (self.total - done):.0f} s left"
        # Work before the first epoch, or without any, has no number.
        counted = f"{int(done)}/{self.total} " if self.total else f"{int(done)} " if done else ""
        self._print(f"{counted}{words}{left}")

    def close(self, seconds: float, failed: bool) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif not failed:
            self._print(f"done in {seconds:.1f} s")

    def _print(self, text: str) -> None:
        self.console.print(f"[{self.name}] {text}", markup=False, highlight=False, soft_wrap=True)
