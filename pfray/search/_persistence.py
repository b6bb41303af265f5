"""Persistence of a search in its folder, and resuming after a kill.

``trials.jsonl`` is authoritative: a trial without a line there never happened. The state (``_state.py``) holds the
rest, so that a resumed search proposes the same plans as an uninterrupted one. A state that is missing, damaged or of
other trials is ignored; the search then keeps its trials and draws new plans.
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
from pfray.search._plan_file import plan_mistakes
from pfray.search._state import UnusableState
from pfray.search._trial_log import TRIALS, add_line, checksum, read_trials
from pfray.space import CompressionSpace
from pfray.utils.files import append_line

# Saves are throttled: above QUICK CPU seconds, at most SAVE_SHARE of the time goes to saving. The state of thousands of
# trials is large, and ``trials.jsonl`` makes up for an old one.
QUICK, SAVE_SHARE = 0.02, 0.1
# Keys of an unfinished trial.
ENTRY = {"trial", "origin", "plan"}


class _Values(BaseModel):
    """Values of ``PersistentSearch.state`` except the generator. queue: trial, origin and plan of each entry."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    center: list[float]
    asked: int
    lost: list[int]
    exhausted: bool
    restarts: list[list[int]]
    queue: list[dict[str, Any]]


class PersistentSearch:
    """The half of ``PlanSearcher`` that deals with ``folder``; the attributes are explained there."""

    # True if ``ask`` proposes plans as long as there is budget. If False, the only plan is the first plan of the
    # searcher's own name, ``ask`` is not called, and there is no state to keep.
    open_ended: ClassVar[bool] = True
    # If the user gives the plan: end of the error message about a changed one, with its source and the remedy.
    plan_source: ClassVar[str | None] = None

    space: CompressionSpace
    trials: int
    folder: Path | None
    rng: np.random.Generator
    center: np.ndarray
    records: list[dict[str, Any]]
    pending: dict[int, dict[str, Any]]
    queue: list[dict[str, Any]]
    asked: int
    lost_trials: list[int]
    restarts: Counter[int]
    no_plans_left: bool
    # Checksums of the warm-start trials, and of the lines of ``trials.jsonl``.
    warm_trials_checksum: int
    log_checksum: int
    # Earliest time of the next save, by the monotonic clock.
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
        self.log_checksum = add_line(self.log_checksum, line)
        if self.open_ended and time.monotonic() >= self.next_save:
            began = time.process_time()
            self.save_state()
            spent = time.process_time() - began
            self.next_save = time.monotonic() + spent / SAVE_SHARE if spent > QUICK else 0.0

    def save_state(self) -> None:
        """Save to ``folder`` the state beyond ``trials.jsonl``."""
        assert self.folder is not None
        _state.write(self.folder, self._identity(len(self.records), self.log_checksum), *self.state())

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(JSON values, tensors): everything besides the finished trials that determines the next plans.

        A searcher that learns in ``tell`` extends this and ``load_state``, calling super's first. One that extends
        neither is told all records again on resuming, which is equivalent if ``tell`` draws nothing from ``rng``.
        """
        out = sorted([*self.pending.values(), *self.queue], key=lambda entry: entry["trial"])
        return {
            "generator": _state.generator_state(self.rng),
            "center": self.center.tolist(),
            "asked": self.asked,
            "lost": list(self.lost_trials),
            "exhausted": self.no_plans_left,
            "restarts": [list(pair) for pair in self.restarts.items()],
            # Running trials are suggested again, first.
            "queue": [dict(entry) for entry in out],
        }, {}

    def load_state(self, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Load the result of ``state``, after ``records`` was restored. Raises any exception for invalid values."""
        _state.set_generator(self.rng, values["generator"])
        self.center = np.array(values["center"])
        self.asked, self.lost_trials, self.no_plans_left = values["asked"], list(values["lost"]), values["exhausted"]
        self.restarts = Counter(dict(values["restarts"]))
        self.queue, self.pending = [dict(entry) for entry in values["queue"]], {}

    def resume(self) -> str | None:
        """Continue the search of ``folder`` from its records, and from the saved state if it belongs to them.

        Returns a note for the user if the state is not used. Raises StorageError for a damaged ``trials.jsonl``.
        """
        assert self.folder is not None
        records = read_trials(self.folder / TRIALS, self.space, self.trials)
        self._check_user_plan(records)
        known, note = self._load_saved_state(records) if self.open_ended else (0, None)
        for record in records[known:]:
            self.queue = [entry for entry in self.queue if entry["trial"] != record["trial"]]
            self.asked = max(self.asked, record["trial"] + 1)
            self._learn(record)
        self.log_checksum = checksum(records)
        if len(records) > known + 1:
            # With the old generator the plans of these trials would be drawn again and rejected one by one.
            self.rng = np.random.default_rng([int(self.rng.integers(2**31)), len(records)])
        # Trials that were running while a later one was written, in a run killed before its state was saved.
        accounted = {entry["trial"] for entry in (*self.records, *self.queue)}
        self.lost_trials = [number for number in range(self.asked) if number not in accounted]
        return None if self.finished() else note

    def _load_saved_state(self, records: list[dict[str, Any]]) -> tuple[int, str | None]:
        """Load the saved state. Returns the number of ``records`` that it covers, and a note if it is not used."""
        assert self.folder is not None
        fresh = copy.deepcopy(self.state())
        try:
            if (found := _state.read(self.folder)) is None:
                if not records or (len(records) == 1 and not (self.folder / _state.PICKLE).exists()):
                    return 0, None  # the first record is written before the first state
                raise UnusableState("it is missing")
            of, values, tensors = found
            told = self._check_belongs(of, records)
            self._check_values(values)
            if type(self).load_state is PersistentSearch.load_state:
                for record in records[:told]:
                    self._learn(record)
            self.records = records[:told]
            self.load_state(values, tensors)
            return told, None
        except Exception as error:  # an altered state may raise anything
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
        """Number of ``records`` that a state covers. Raises UnusableState if it belongs to another search."""
        told = of.get("told")
        if not isinstance(told, int) or not 0 <= told <= len(records):
            raise UnusableState(f"it is of {told} trials, and there are {len(records)}")
        if of != self._identity(told, checksum(records[:told])):
            raise UnusableState("it is of other trials")
        return told

    def _identity(self, told: int, written: int) -> dict[str, Any]:
        """Identity of a state: the searcher, its trials (number and checksum), and the checksum of its warm start."""
        searcher, warm = type(self).__qualname__, self.warm_trials_checksum
        return {"searcher": searcher, "told": told, "written": written, "earlier": warm}

    def _check_values(self, values: Mapping[str, Any]) -> None:
        """Raise any exception for values that are not a state of this space and budget."""
        known = _Values.model_validate({key: values[key] for key in _Values.model_fields})
        _state.set_generator(np.random.default_rng(0), values["generator"])
        numbers = [known.asked - 1, *known.lost, *(entry["trial"] for entry in known.queue)]
        if not -1 <= min(numbers) <= max(numbers) < self.trials or len(known.center) != len(self.space):
            raise UnusableState("it is of another search")
        if any(plan_mistakes(entry["plan"], self.space) or set(entry) != ENTRY for entry in known.queue):
            raise UnusableState("it is of another space")

    def _check_user_plan(self, records: list[dict[str, Any]]) -> None:
        """Raise StorageError if the user's plan differs from the recorded one."""
        if self.plan_source is None:
            return
        plans = {entry["trial"]: entry["plan"] for entry in self.queue}
        for record in records:
            if plans.get(record["trial"]) != record["plan"]:
                raise StorageError(
                    f"{self.folder and self.folder / TRIALS}: trial {record['trial']} is of another plan than "
                    f"{self.plan_source}"
                )
