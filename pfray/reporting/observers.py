"""Observers of a run, told of its stages, trials, epochs and measurements.

A user's own observer is a subclass of ``Observer`` with the methods it needs, given to ``pfray.run.run(...,
observers=[Mine()])``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pfray.errors import PfrayError, first_line
from pfray.utils.command import UNWRITABLE
from pfray.utils.user_code import place_of

if TYPE_CHECKING:
    from pfray.measure.evaluation import Measurement


@dataclass(frozen=True)
class SearchState:
    """A search after a finished trial. stage: ``search``, or ``rescore`` if the best trials are measured again.

    records: all finished trials as in ``trials.jsonl``, the newest last. best: record of the best trial; None while
    there is no score. best_text: its score in words, with the name of the score.
    """

    stage: str
    records: Sequence[Mapping[str, Any]]
    best: Mapping[str, Any] | None
    best_text: str = ""

    @property
    def failed(self) -> int:
        """Number of failed trials."""
        return sum(record["error"] is not None for record in self.records)


class Observer:
    """Base of all observers; its methods do nothing. All are called in the driver, ``epoch_done`` from any thread."""

    def stage_started(self, stage: str, total: int | None) -> None:
        """total: units of work in the stage; None if unknown."""

    def stage_advanced(self, stage: str, done: float, words: str) -> None:
        """done: units of work so far, with the share of a long one. words: a remark, such as the best score."""

    def stage_ended(self, stage: str, seconds: float, failed: bool) -> None:
        """failed: an exception ended the stage."""

    def trial_finished(self, search: SearchState) -> None:
        """A trial gave a score or an error."""

    def epoch_done(self, training: str, epoch: int, loss: float) -> None:
        """training: name of the model or of a stage of its training. epoch: from 1. loss: mean over the epoch."""

    def measured(self, model: str, measurement: Measurement) -> None:
        """The final measurement of a model on the test split."""

    def note(self, text: str) -> None:
        """A line for the user."""

    def close(self) -> None:
        """The run ended, well or not."""


class Stage:
    """The current stage of a run."""

    def __init__(self, observer: Observer, name: str) -> None:
        self.observer, self.name = observer, name

    def update(self, done: float, words: str = "") -> None:
        self.observer.stage_advanced(self.name, done, words)


class Observers(Observer):
    """Passes every event to all observers, and adds up the seconds of each stage.

    An observer that raises an error of its own is removed, so that it cannot cost a run its results. PfrayError is
    raised, and so is the OSError of a folder that cannot be written (a full disk).
    """

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self.observers = list(observers)
        self.seconds: dict[str, float] = {}

    def add(self, observer: Observer) -> None:
        self.observers.append(observer)

    @contextmanager
    def joined_by(self, observer: Observer) -> Iterator[None]:
        """Add ``observer`` for the length of the block."""
        self.add(observer)
        try:
            yield
        finally:
            self.observers = [each for each in self.observers if each is not observer]

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """A stage of the run, for the length of the block."""
        started, failed = time.monotonic(), True
        self.stage_started(name, total)
        try:
            yield Stage(self, name)
            failed = False
        finally:
            self.stage_ended(name, time.monotonic() - started, failed)

    def stage_started(self, stage: str, total: int | None) -> None:
        self._tell(lambda observer: observer.stage_started(stage, total))

    def stage_advanced(self, stage: str, done: float, words: str) -> None:
        self._tell(lambda observer: observer.stage_advanced(stage, done, words))

    def stage_ended(self, stage: str, seconds: float, failed: bool) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self._tell(lambda observer: observer.stage_ended(stage, seconds, failed))

    def trial_finished(self, search: SearchState) -> None:
        self._tell(lambda observer: observer.trial_finished(search))

    def epoch_done(self, training: str, epoch: int, loss: float) -> None:
        self._tell(lambda observer: observer.epoch_done(training, epoch, loss))

    def measured(self, model: str, measurement: Measurement) -> None:
        self._tell(lambda observer: observer.measured(model, measurement))

    def note(self, text: str) -> None:
        self._tell(lambda observer: observer.note(text))

    def close(self) -> None:
        self._tell(lambda observer: observer.close())

    def _tell(self, event: Callable[[Observer], None]) -> None:
        for observer in list(self.observers):
            try:
                event(observer)
            except Exception as error:
                if isinstance(error, PfrayError) or (isinstance(error, OSError) and error.errno in UNWRITABLE):
                    raise
                # Trainings in several threads may find the same one failing.
                self.observers = [each for each in self.observers if each is not observer]
                logging.getLogger("pfray").warning(
                    "the observer %s failed (%s: %s)%s; the run goes on without it",
                    type(observer).__name__, type(error).__name__, first_line(error), place_of(error),
                )  # fmt: skip
