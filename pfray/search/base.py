"""PlanSearcher: Ray Tune's searcher contract, met once for all optimizers.

A subclass writes ``ask() -> plan`` and ``tell(plan, score)``. Everything else is here: the first plans of every search,
the hard target, failed and NaN trials, the record of every finished trial, and continuing a search that was killed.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ray.tune.search import Searcher

from pfray.errors import PfrayError
from pfray.search._persistence import KeptSearch
from pfray.space import CompressionSpace, Limits, Plan

# A searcher that asks for plans already tried, so many times in a row, is taken to have no others: a space of few whole
# numbers, or a single knob that the target decides.
RETRIES = 20
# By how much further from the known plans each of these looks than the one before, as several knobs that move by less
# than half a step of theirs move nothing.
WIDER = 1.25
# A trial whose worker died is suggested again so many times, beside what Tune itself does about it: where the worker
# dies as it is given the plan, Tune takes that for an error of the trial.
RESTARTS = 2


@dataclass(frozen=True)
class NoSettings:
    """None are needed."""


class PlanSearcher(KeptSearch, Searcher):
    """Base of all searchers. ``settings_type`` is the frozen dataclass of a searcher's own settings.

    space, limits: where to search; every plan that leaves here meets the limits.
    first_plans: (origin, plan) of the plans tried before the first ``ask``. trials: how many plans in all.
    use_up: whether plans are moved onto the limits from below too; not where the score weighs the cost by itself.
    folder: where ``trials.jsonl`` (one line a finished trial) and the state are kept; None keeps nothing.
    """

    settings_type: ClassVar[type]
    # What the report calls the plan of the last ``ask``: ``random`` where nothing learned went into it.
    origin: str = "searched"

    def __init__(
        self,
        space: CompressionSpace,
        limits: Limits,
        settings: Any,
        *,
        seed: int = 0,
        trials: int = 30,
        first_plans: tuple[tuple[str, Plan], ...] = (),
        use_up: bool = True,
        folder: Path | None = None,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self.space, self.limits, self.settings = space, dict(limits), settings
        self.trials, self.use_up, self.folder = trials, use_up, folder
        self.rng = np.random.default_rng(seed)
        # Where a search without knowledge of its own looks first: around the first of the first plans.
        self.center = space.encode(first_plans[0][1] if first_plans else space.uniform(limits))
        self.records: list[dict[str, Any]] = []
        # Trials of another run that this one starts with: (plan, score).
        self.earlier: list[tuple[Plan, float | None]] = []
        self.earlier_sum = 0
        # Suggested and not finished, by trial number; and those a killed run left behind, to be suggested again.
        self.pending: dict[int, dict[str, Any]] = {}
        self.queue: list[dict[str, Any]] = [
            {"trial": i, "origin": origin, "plan": plan} for i, (origin, plan) in enumerate(first_plans[:trials])
        ]
        self.asked = len(self.queue)
        # Numbers of trials whose plan a killed run took with it; they get new ones.
        self.lost: list[int] = []
        self.running: dict[str, int] = {}
        # How often a trial was suggested again because its worker died.
        self.restarts: Counter[int] = Counter()
        # Plans asked for in a row that had been tried already, and whether they were too many: no plan is left.
        self.refused = 0
        self.exhausted = False
        self.written, self.next_save = 0, 0.0
        # What kept the last record from being written.
        self.failure: Exception | None = None

    def ask(self) -> Plan | None:
        """The next plan, whether or not it meets the limits; None when there is nothing left to try."""
        raise NotImplementedError

    def tell(self, plan: Plan, score: float | None) -> None:
        """Learn from a finished trial. ``score`` is None for one that failed or gave NaN."""

    @property
    def told(self) -> list[tuple[Plan, float | None]]:
        """(plan, score) of all that was told, a warm start's first; None is the score of a failed trial."""
        return [*self.earlier, *((record["plan"], record["score"]) for record in self.records)]

    @property
    def tried(self) -> list[Plan]:
        """The plans of this search that are finished or running."""
        return [entry["plan"] for entry in (*self.records, *self.pending.values())]

    @property
    def widening(self) -> float:
        """By how much further to look than usual, because what was asked for was tried already; 1 at first."""
        return WIDER**self.refused

    def warm_start(self, trials: Sequence[tuple[Plan, float | None]]) -> None:
        """Learn from another run's trials first. Its best plan is tried in this one too, after the first plans."""
        self.earlier = list(trials)
        self.earlier_sum = zlib.crc32(json.dumps(self.earlier).encode())
        for plan, score in self.earlier:
            self.tell(plan, score)
        found = best_plan(self.earlier)
        if found is not None and self.asked < self.trials:
            best = self._within_limits(found)
            if best not in [entry["plan"] for entry in self.queue]:
                self.queue.append({"trial": self.asked, "origin": "warm start", "plan": best})
                self.asked += 1

    def scattered(self, positions: np.ndarray, spread: float) -> Plan:
        """A plan drawn around ``positions`` ``(L,)``; searched settings anywhere in their range.

        spread: standard deviation of the whole move, where nothing widens it; each knob's is this over the root of
        their number.
        """
        deviation = self.widening * spread / np.sqrt(len(self.space))
        drawn = positions + deviation * self.rng.standard_normal(len(self.space))
        free = self.space.free
        if free.any():
            drawn[free] = self.rng.random(free.sum())
        return self.space.decode(drawn)

    def beside_best(self, spread: float) -> Plan:
        """A plan drawn around the best one."""
        return self.scattered(self.best_positions, spread)

    @property
    def best_positions(self) -> np.ndarray:
        """``(L,)``: where the plan of the best score is, or the first one while there is no score."""
        best = best_plan(self.told)
        return self.center if best is None else self.space.encode(best)

    # -- Ray Tune's side

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        entry = self._next() if self.failure is None else None
        if entry is None:
            # One that is out may have to be suggested again; Tune then asks anew.
            waiting = self.pending and self.failure is None
            return None if waiting else Searcher.FINISHED  # type: ignore[return-value]
        self.pending[entry["trial"]] = entry
        self.running[trial_id] = entry["trial"]
        return dict(entry)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self.running.pop(trial_id, None)
        if number is None:
            return
        entry, result = self.pending.pop(number), result or {}
        score = result.get("score")
        failure = result.get("error")
        if failure is None and score is None and self.restarts[number] < RESTARTS:
            self.restarts[number] += 1
            self.queue.insert(0, entry)
            return
        if failure is None and (score is None or not math.isfinite(score)):
            failure = "the score is not a number" if score is not None else "its worker died and retrying did not help"
        record = {
            **entry,
            "score": None if failure else score,
            "standard_error": None if failure else _finite(result.get("standard_error")),
            "cost": self.space.costs(entry["plan"]),
            # Tune hands nested results over flat, as ``measurement/accuracy``.
            "measurement": {
                key.partition("/")[2]: _finite(value) for key, value in result.items() if key.startswith("measurement/")
            }
            or None,
            "seconds": result.get("seconds"),
            "finished_at": result.get("finished_at"),
            "rounds": result.get("training_iteration"),
            "error": failure,
            **({"halved_batch": True} if result.get("halved_batch") else {}),
        }
        self._learn(record)
        try:
            self.write_record(record)
        except (OSError, PfrayError) as error:
            # Tune would log it and go on; so the search ends itself, and ``run_trials`` raises it.
            self.failure = error

    def finished(self) -> bool:
        """Whether no plan is left to try: the budget is used up, or ``ask`` has no more to offer."""
        if self.queue or self.pending:
            return False
        return not self._may_ask()

    def count(self) -> dict[str, int | None]:
        """The numbers of finished and failed trials, of those that had half a batch, if any, and the best one's."""
        failed = sum(record["error"] is not None for record in self.records)
        best = self.best()
        halved = sum(record.get("halved_batch", False) for record in self.records)
        return {
            "finished": len(self.records) - failed, "failed": failed, "best": best["trial"] if best else None,
            **({"halved_batch": halved} if halved else {}),
        }  # fmt: skip

    def best(self) -> dict[str, Any] | None:
        """The record of the best trial; the earlier one of equals."""
        return next(iter(self.ranking()), None)

    def ranking(self) -> list[dict[str, Any]]:
        """The records that have a score, the best first; of equals the earlier one."""
        scored = [record for record in self.records if record["score"] is not None]
        return sorted(scored, key=lambda record: (-record["score"], record["trial"]))

    def rivals(self, count: int) -> list[dict[str, Any]]:
        """The records worth measuring again: the ``count`` best, the best first, and the first trial's.

        The plan that needed no search is always there, so that luck on few images cannot put a worse one in its place.
        """
        ranking = self.ranking()
        return ranking[:count] + [record for record in ranking[count:] if record["trial"] == 0]

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: Tune would keep a state of its own, which is never read."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its searcher once, for a restore of its own, which is never used.
        return {}

    def _learn(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.tell(record["plan"], record["score"])

    def _next(self) -> dict[str, Any] | None:
        """The next trial: one left over, or a new one as long as there is budget and something to ask."""
        if self.queue:
            return self.queue.pop(0)
        if not self._may_ask() or (plan := self._new_plan()) is None:
            return None
        if self.lost:
            number = self.lost.pop(0)
        else:
            number, self.asked = self.asked, self.asked + 1
        return {"trial": number, "origin": self.origin, "plan": plan}

    def _may_ask(self) -> bool:
        return self.open_ended and not self.exhausted and (bool(self.lost) or self.asked < self.trials)

    def _new_plan(self) -> Plan | None:
        """A plan of ``ask`` on the target that was not tried before; None where there is none."""
        tried = self.tried
        for self.refused in range(RETRIES):
            asked = self.ask()
            if asked is None:
                return None
            plan = self._within_limits(asked)
            if plan not in tried:
                self.refused = 0
                return plan
        self.exhausted = True
        return None

    def _within_limits(self, plan: Plan) -> Plan:
        on_range = self.space.decode(self.space.encode(plan))
        if not self.use_up and self.space.meets(on_range, self.limits):
            return on_range
        return self.space.fit_to_target(plan, self.limits)


def _finite(number: float | None) -> float | None:
    """A measured number; None where it is none, as ``trials.jsonl`` holds no others."""
    return number if number is not None and math.isfinite(number) else None


def best_plan(told: Sequence[tuple[Plan, float | None]]) -> Plan | None:
    """Of (plan, score) the plan of the highest score, the first of equals; None where there is no score."""
    scored = [(score, plan) for plan, score in told if score is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None

