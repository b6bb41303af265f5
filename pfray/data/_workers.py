"""A task as the workers of a run get it: who reads its data ahead, and what of them a trial sees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pfray.data._readers import has_own_shards
from pfray.data._split import Split
from pfray.data._stream import Stream
from pfray.errors import DataError
from pfray.nn.inputs import tensors
from pfray.task import SPLITS, Task

# Bytes of a split that trials may have in memory besides what a setting asks for.
ROOM = 2**30


def read_by(task: Task, loaders: int | None, workers: int) -> tuple[Task, list[str]]:
    """(the task with data read ahead by ``loaders`` processes, remarks for users). None: as many as they have by now.

    workers: of a retraining.
    """
    changed: dict[str, Any] = {}
    made: dict[int, Stream] = {}  # a split may serve as two
    for name in SPLITS:
        split = getattr(task, name)
        if isinstance(split, Stream) and loaders is not None:
            changed[name] = made.setdefault(id(split), replace(split, loaders=loaders))
    train: Any = task.train
    remarks = []
    iterable = isinstance(train, Stream) and train.indices is None
    if workers > 1 and iterable and not has_own_shards(train.dataset, workers):
        remarks.append(
            f"each of the {workers} workers reads all of the training data and keeps its part, because they are no "
            "Hugging Face data set whose shards can be dealt out evenly"
        )
    return (replace(task, **changed) if changed else task), remarks


@dataclass(frozen=True)
class Calibration(Split):
    """The first samples of a split, all that a trial sees of it.

    whole: samples of the split. read: those that were read of it; there are fewer here where some were left out, such
    as damaged images. Raises DataError where more are asked for than were read.
    """

    whole: int = 0
    read: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _calibration, (Split(self.inputs, self.targets), self.whole, self.read)

    def head(self, count: int | None) -> Split:
        asked = self.whole if count is None else min(count, self.whole)
        if asked > self.read:
            raise DataError(
                f"a trial has the first {self.read} of {self.whole} training samples, and {asked} are asked for. "
                "Remedy: a setting of the learner whose name ends in 'images' and says how many it reads"
            )
        return Split(self.inputs, self.targets).head(count)


def for_trials(task: Task, train: int, finetuned: int, validation: int | None) -> Task:
    """The task with its data in memory, as trials get it through Ray's object store: the first samples of what is read
    batch by batch. Splits in memory stay as they are.

    train: training samples that learner and batch norms read. finetuned: those that the optimizer steps of a trial
    take, as far as there is ``ROOM``; the steps go round them. validation: samples that a trial is measured on; of all,
    for None, the trials read what there is no room for themselves.
    """
    changed: dict[str, Any] = {}
    if isinstance(task.train, Stream):
        count = min(len(task.train), max(train, min(finetuned, _fitting(task.train))))
        changed["train"] = _calibration(task.train.head(count), len(task.train), count)
    if isinstance(task.validation, Stream):
        count = len(task.validation) if validation is None else validation
        fits = validation is not None or count <= _fitting(task.validation)
        changed["validation"] = task.validation.head(count) if fits else replace(task.validation, kept={}, asked={})
    if isinstance(task.test, Stream):
        changed["test"] = task.test.head(1)
    return replace(task, **changed) if changed else task


def _fitting(stream: Stream) -> int:
    """Samples that ``ROOM`` has place for."""
    example = stream.head(1)
    return ROOM // max(1, sum(t.nbytes for part in (example.inputs, example.targets) for t in tensors(part)))


def _calibration(split: Split, whole: int, read: int) -> Calibration:
    return Calibration(split.inputs, split.targets, whole, read)
