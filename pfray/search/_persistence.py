"""What a search keeps in its folder, and how it goes on from that after a kill.

``trials.jsonl`` is the truth: what is no line of it was never tried. The state beside it (``_state.py``) has the
rest, so that the plans after a kill are those that would have come without it. A state that is missing, damaged or of
other trials is not used; then the search has its trials, and draws its next plans anew.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from pfray.errors import StorageError
from pfray.search import _state
from pfray.search._plan_file import mistakes
from pfray.search._state import UnusableState
from pfray.search._trial_log import TRIALS, add_line, checksum, read_trials
from pfray.space import CompressionSpace
from pfray.utils.files import append_line

# A state that takes longer to save, in seconds of the processor, is saved only so often that this share of the time
# goes to it: of thousands of trials it is large, and what it lacks the trial file has.
QUICK, SAVE_SHARE = 0.02, 0.1
# What a trial that is not finished consists of.
ENTRY = {"trial", "origin", "plan"}


class _Values(BaseModel):
    """What ``KeptSearch.state`` gives as JSON, but for the generator. queue: trial, origin and plan of each."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    center: list[float]
    asked: int
    lost: list[int]
    exhausted: bool
    restarts: list[list[int]]
    queue: list[dict[str, Any]]


class KeptSearch:
    """The half of ``PlanSearcher`` that deals with ``folder``; what a search consists of is explained there."""

    # Whether ``ask`` goes on as long as there is budget. If not, the only plan is the one of ``origin`` among the plans
    # that need no search, ``ask`` is not called, and there is no state to keep.
    open_ended: ClassVar[bool] = True
    # Where its plans are given to it and no search finds them: what says which, and what to do where that has changed.
    given: ClassVar[str | None] = None

    space: CompressionSpace
    trials: int
    folder: Path | None
    rng: np.random.Generator
    center: np.ndarray
    records: list[dict[str, Any]]
    pending: dict[int, dict[str, Any]]
    queue: list[dict[str, Any]]
    asked: int
    lost: list[int]
    restarts: Counter[int]
    exhausted: bool
    # Checksums of what a warm start told, and of what ``trials.jsonl`` holds.
    earlier_sum: int
    written: int
    # When the state is to be saved again, by the monotonic clock.
    next_save: float

    def finished(self) -> bool:
        raise NotImplementedError

    def _learn(self, record: dict[str, Any]) -> None:
        raise NotImplementedError

    def write_record(self, record: dict[str, Any]) -> None:
        if self.folder is None:
            return
        line = json.dumps(record)
        append_line(self.folder / TRIALS, line)
        self.written = add_line(self.written, line)
        if self.open_ended and time.monotonic() >= self.next_save:
            began = time.process_time()
            self.save_state()
            spent = time.process_time() - began
            self.next_save = time.monotonic() + spent / SAVE_SHARE if spent > QUICK else 0.0

    def save_state(self) -> None:
        """Keep in ``folder`` what the search knows beyond ``trials.jsonl``."""
        assert self.folder is not None
        _state.write(self.folder, self._state_of(len(self.records), self.written), *self.state())

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(plain values that JSON can hold, tensors): all that goes into the next plans but what was told.

        A searcher that learns from what it is told extends it together with ``load_state``, each with super's first.
        One that extends neither learns from all records again where its search goes on, which is the same for all
        that it does not learn from draws of ``rng``.
        """
        out = sorted([*self.pending.values(), *self.queue], key=lambda entry: entry["trial"])
        return {
            "generator": _state.generator_state(self.rng),
            "center": self.center.tolist(),
            "asked": self.asked,
            "lost": list(self.lost),
            "exhausted": self.exhausted,
            "restarts": [list(pair) for pair in self.restarts.items()],
            # Those that are out are suggested again, first.
            "queue": [dict(entry) for entry in out],
        }, {}

    def load_state(self, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Become what ``state`` described; ``records`` is then what it was. Raises anything for what ``state`` never
        gave."""
        _state.set_generator(self.rng, values["generator"])
        self.center = np.array(values["center"])
        self.asked, self.lost, self.exhausted = values["asked"], list(values["lost"]), values["exhausted"]
        self.restarts = Counter(dict(values["restarts"]))
        self.queue, self.pending = [dict(entry) for entry in values["queue"]], {}

    def resume(self) -> str | None:
        """Continue the search of ``folder``: its records, and the saved state where there is one that belongs to them.

        Returns what the user should know of that, if anything. Raises StorageError for a damaged ``trials.jsonl``.
        """
        assert self.folder is not None
        records = read_trials(self.folder / TRIALS, self.space, self.trials)
        self._check_given(records)
        known, note = self._take_up(records) if self.open_ended else (0, None)
        for record in records[known:]:
            self.queue = [entry for entry in self.queue if entry["trial"] != record["trial"]]
            self.asked = max(self.asked, record["trial"] + 1)
            self._learn(record)
        self.written = checksum(records)
        if len(records) > known + 1:
            # Drawn again, the plans of these trials would be refused one after the other.
            self.rng = np.random.default_rng([int(self.rng.integers(2**31)), len(records)])
        # Plans that were out while a later one was finished and written, in a run killed before its state was saved.
        accounted = {entry["trial"] for entry in (*self.records, *self.queue)}
        self.lost = [number for number in range(self.asked) if number not in accounted]
        return None if self.finished() else note

    def _take_up(self, records: list[dict[str, Any]]) -> tuple[int, str | None]:
        """Become what the saved state says; returns of how many of ``records`` it was made, and why it was not used."""
        assert self.folder is not None
        fresh = copy.deepcopy(self.state())
        try:
            if (found := _state.read(self.folder)) is None:
                if not records or (len(records) == 1 and not (self.folder / _state.PICKLE).exists()):
                    return 0, None  # the first one is written before there is a state
                raise UnusableState("it is missing")
            of, values, tensors = found
            told = self._check_belongs(of, records)
            self._check_values(values)
            if type(self).load_state is KeptSearch.load_state:
                for record in records[:told]:
                    self._learn(record)
            self.records = records[:told]
            self.load_state(values, tensors)
            return told, None
        except Exception as error:  # of a state that was never saved so, anything
            reason = str(error) if isinstance(error, UnusableState) else "it is damaged"
        self.records = []
        self.load_state(*fresh)
        if (self.folder / _state.PICKLE).exists() and not (self.folder / _state.STATE).exists():
            reason = f"the run is of an earlier version, whose {_state.PICKLE} is not read"
        return 0, (
            f"{self.folder / _state.STATE} is not used: {reason}. The search goes on from the {len(records)} "
            f"trials of {TRIALS}, with other plans than it would have tried"
        )

    def _check_belongs(self, of: Mapping[str, Any], records: list[dict[str, Any]]) -> int:
        """How many of ``records`` a state was made of. Raises UnusableState where it is another search's."""
        told = of.get("told")
        if not isinstance(told, int) or not 0 <= told <= len(records):
            raise UnusableState(f"it is of {told} trials, and there are {len(records)}")
        if of != self._state_of(told, checksum(records[:told])):
            raise UnusableState("it is of other trials")
        return told

    def _state_of(self, told: int, written: int) -> dict[str, Any]:
        """What a state is the state of: the searcher, what it was told, and what a warm start had told it before."""
        return {"searcher": type(self).__qualname__, "told": told, "written": written, "earlier": self.earlier_sum}

    def _check_values(self, values: Mapping[str, Any]) -> None:
        """Raises anything for what is no state of this space and budget."""
        known = _Values.model_validate({key: values[key] for key in _Values.model_fields})
        _state.set_generator(np.random.default_rng(0), values["generator"])
        numbers = [known.asked - 1, *known.lost, *(entry["trial"] for entry in known.queue)]
        if not -1 <= min(numbers) <= max(numbers) < self.trials or len(known.center) != len(self.space):
            raise UnusableState("it is of another search")
        if any(mistakes(entry["plan"], self.space) or set(entry) != ENTRY for entry in known.queue):
            raise UnusableState("it is of another space")

    def _check_given(self, records: list[dict[str, Any]]) -> None:
        """Raises StorageError where plans that are given are no longer those on record."""
        if self.given is None:
            return
        plans = {entry["trial"]: entry["plan"] for entry in self.queue}
        for record in records:
            if plans.get(record["trial"]) != record["plan"]:
                raise StorageError(
                    f"{self.folder and self.folder / TRIALS}: trial {record['trial']} is of another plan than "
                    f"{self.given}"
                )
