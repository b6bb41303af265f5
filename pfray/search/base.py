"""PlanSearcher: Ray Tune's searcher contract, implemented once for all optimizers.

A subclass writes ``ask() -> plan`` and ``tell(plan, score)``. The base does the rest: the first plans of every search,
the hard target, failed and NaN trials, the record of every finished trial, and resuming a killed search.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ray.tune.search import Searcher
from scipy.stats import norm

from pfray.errors import ClusterError, PfrayError
from pfray.search._patience import is_without_gain
from pfray.search._persistence import PersistentSearch
from pfray.search._trial_log import RANDOM_START, record_of
from pfray.space import CompressionSpace, Limits, Plan

# After so many duplicate plans in a row a searcher is taken to have no others: a small discrete space, or a single knob
# that the target determines.
MAX_DUPLICATES = 20
# Growth of the exploration radius with each duplicate: knobs that all move by less than half a step of theirs give the
# same plan.
SPREAD_GROWTH = 1.25
# Restarts of a trial whose worker died, in addition to Tune's own retries: a worker's death while it receives the plan
# counts for Tune as an error of the trial.
MAX_RESTARTS = 2


class PlanSearcher(PersistentSearch, Searcher):
    """Base of all searchers. ``settings_type`` is the frozen dataclass of a searcher's own settings.

    space, limits: the search space and its limits; every suggested plan meets them.
    first_plans: (origin, plan) of the plans tried before the first ``ask``. trials: budget, the total number of plans.
    use_full_budget: if True, plans below the limits are moved up onto them; False if the score itself weighs the cost.
    patience: share of the search's own trials after which it ends if they have not beaten the first plan (see
        ``gave_up``); 1 tries all.
    folder: for ``trials.jsonl`` (one line per finished trial) and the state; None saves nothing.
    """

    settings_type: ClassVar[type]
    # False if nothing learned went into the plan of the last ``ask``: it belongs to the random start of the search.
    learned: bool = True

    def __init__(
        self,
        space: CompressionSpace,
        limits: Limits,
        settings: Any,
        *,
        seed: int = 0,
        trials: int = 30,
        first_plans: tuple[tuple[str, Plan], ...] = (),
        use_full_budget: bool = True,
        patience: float = 1.0,
        folder: Path | None = None,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self.space, self.limits, self.settings = space, dict(limits), settings
        # A searcher that is not open-ended has nothing to try beyond its first plans.
        self.trials = trials if self.open_ended else min(trials, len(first_plans))
        self.use_full_budget, self.patience, self.folder = use_full_budget, patience, folder
        self.rng = np.random.default_rng(seed)
        # Position where exploration starts: the first of the first plans.
        self.center = space.encode(first_plans[0][1] if first_plans else space.uniform(limits))
        self.records: list[dict[str, Any]] = []
        # (plan, score) of the warm start, trials of another run.
        self.warm_trials: list[tuple[Plan, float | None]] = []
        self.warm_trials_checksum = 0
        # Running trials, by number; and trials to suggest next, e.g. those interrupted in a killed run.
        self.pending: dict[int, dict[str, Any]] = {}
        self.queue: list[dict[str, Any]] = [
            {"trial": i, "origin": origin, "plan": plan} for i, (origin, plan) in enumerate(first_plans[:trials])
        ]
        self.asked = len(self.queue)
        self.first_origins = [entry["origin"] for entry in self.queue]
        # Numbers of trials whose plan was lost in a killed run; they get new plans.
        self.lost_trials: list[int] = []
        self.running: dict[str, int] = {}
        # Restarts of each trial whose worker died.
        self.restarts: Counter[int] = Counter()
        # Duplicate plans of ``ask`` in a row, and whether they reached MAX_DUPLICATES: no plan is left.
        self.duplicates = 0
        self.no_plans_left = False
        self.log_checksum, self.next_save = 0, 0.0
        # Error of writing the last record.
        self.failure: Exception | None = None

    def ask(self) -> Plan | None:
        """The next plan, which need not meet the limits; None if nothing is left to try."""
        raise NotImplementedError

    def tell(self, plan: Plan, score: float | None) -> None:
        """Learn from a finished trial. score: None for a trial that failed or gave NaN."""

    @classmethod
    def title(cls) -> str:
        """The searcher's name: of its file in ``pfray/search``, else of its class."""
        package, _, file = cls.__module__.rpartition(".")
        return file if package == "pfray.search" else cls.__name__

    @property
    def origin(self) -> str:
        """Name in the report for the plan of the last ``ask``."""
        return self.title() if self.learned else f"{self.title()}{RANDOM_START}"

    @property
    def history(self) -> list[tuple[Plan, float | None]]:
        """(plan, score) of all finished trials, the warm start's first; the score of a failed one is None."""
        return [*self.warm_trials, *((record["plan"], record["score"]) for record in self.records)]

    @property
    def tried_plans(self) -> list[Plan]:
        """Plans of this search that are finished or running."""
        return [entry["plan"] for entry in (*self.records, *self.pending.values())]

    @property
    def spread_factor(self) -> float:
        """Factor of the exploration radius, which grows with every duplicate plan in a row; 1 at first."""
        return SPREAD_GROWTH**self.duplicates

    def warm_start(self, trials: Sequence[tuple[Plan, float | None]]) -> None:
        """Learn from another run's trials first. Its best plan is tried in this run too, after the first plans."""
        self.warm_trials = list(trials)
        self.warm_trials_checksum = zlib.crc32(json.dumps(self.warm_trials).encode())
        for plan, score in self.warm_trials:
            self.tell(plan, score)
        found = best_plan(self.warm_trials)
        if found is not None and self.asked < self.trials:
            best = self._within_limits(found)
            if best not in [entry["plan"] for entry in self.queue]:
                self.queue.append({"trial": self.asked, "origin": "warm start", "plan": best})
                self.asked += 1

    def sample_around(self, positions: np.ndarray, spread: float) -> Plan:
        """A plan drawn from a normal around ``positions`` ``(L,)``; searched settings uniform over their range.

        spread: standard deviation of the total move; it grows with ``spread_factor``.
        """
        deviation = self.spread_factor * self.deviations(spread)
        drawn = positions + deviation * self.rng.standard_normal(len(self.space))
        free = self.space.free
        if free.any():
            drawn[free] = self.rng.random(free.sum())
        return self.space.decode(drawn)

    def deviations(self, spread: float) -> np.ndarray:
        """Standard deviations ``(L,)`` of a draw around a plan, of which ``spread`` is the total move's.

        A layer is kept or removed, and moves by less than half of its range change nothing. Among other knobs each
        has the deviation with which about one of all layers changes.
        """
        layers, usual = self.space.layers_beside_others, spread / np.sqrt(len(self.space))
        return np.where(layers, 0.5 / norm.isf(1 / (2 + layers.sum())) if layers.any() else usual, usual)

    def sample_near_best(self, spread: float) -> Plan:
        """A plan drawn from a normal around the best one."""
        return self.sample_around(self.best_positions, spread)

    @property
    def best_positions(self) -> np.ndarray:
        """Positions ``(L,)`` of the plan of the best score, or of the first plan while there is no score."""
        best = best_plan(self.history)
        return self.center if best is None else self.space.encode(best)

    # -- Ray Tune's side

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        entry = self._next() if self.failure is None else None
        if entry is None:
            # A running trial may have to be suggested again, so Tune has to ask again.
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
        if broken := result.get("setup_error"):
            # It would come again in every worker. The trial has no result, and a continued search repeats it.
            self.failure = ClusterError(broken)
            return
        score = result.get("score")
        failure = result.get("error")
        if failure is None and score is None and self.restarts[number] < MAX_RESTARTS:
            self.restarts[number] += 1
            self.queue.insert(0, entry)
            return
        if failure is None and (score is None or not math.isfinite(score)):
            failure = "the score is not a number" if score is not None else "its worker died and retrying did not help"
        record = record_of(entry, self.space.costs(entry["plan"]), result, failure)
        self._learn(record)
        try:
            self.write_record(record)
        except (OSError, PfrayError) as error:
            # Tune would log it and continue; so the search ends, and ``run_trials`` raises it.
            self.failure = error

    def finished(self) -> bool:
        """True if no plan is left to try: the budget is spent, or ``ask`` has no more to offer."""
        if self.queue or self.pending:
            return False
        return not self._may_ask()

    def gave_up(self) -> bool:
        """True if the search is not expected to gain over its first plan (``_patience.py``)."""
        return is_without_gain(self.records, self.first_origins, self.trials, self.patience)

    def count(self) -> dict[str, int | None]:
        """Numbers of finished and failed trials, the best trial's number, and if any, trials with half the batch."""
        failed = sum(record["error"] is not None for record in self.records)
        best = self.best()
        halved = sum(record.get("halved_batch", False) for record in self.records)
        return {
            "finished": len(self.records) - failed, "failed": failed, "best": best["trial"] if best else None,
            **({"halved_batch": halved} if halved else {}),
        }  # fmt: skip

    def best(self) -> dict[str, Any] | None:
        """Record of the best trial, the earlier one of equals; None without a score."""
        return next(iter(self.ranking()), None)

    def ranking(self) -> list[dict[str, Any]]:
        """Records with a score, the best first, the earlier one of equals first."""
        scored = [record for record in self.records if record["score"] is not None]
        return sorted(scored, key=lambda record: (-record["score"], record["trial"]))

    def finalists(self, count: int) -> list[dict[str, Any]]:
        """Records to measure again: the ``count`` best, the best first, and the first trial's.

        The first plan, which needed no search, is always included, so that a worse one cannot replace it by luck on few
        images.
        """
        ranking = self.ranking()
        return ranking[:count] + [record for record in ranking[count:] if record["trial"] == 0]

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing: Tune's own state of the searcher is never read."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its searcher once, for its own restore, which is never used.
        return {}

    def _learn(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.tell(record["plan"], record["score"])

    def _next(self) -> dict[str, Any] | None:
        """The next trial: from the queue, or a new one within the budget; None if there is none."""
        if self.queue:
            return self.queue.pop(0)
        if not self._may_ask() or (plan := self._new_plan()) is None:
            return None
        if self.lost_trials:
            number = self.lost_trials.pop(0)
        else:
            number, self.asked = self.asked, self.asked + 1
        return {"trial": number, "origin": self.origin, "plan": plan}

    def _may_ask(self) -> bool:
        if not self.open_ended or self.no_plans_left or self.gave_up():
            return False
        return bool(self.lost_trials) or self.asked < self.trials

    def _new_plan(self) -> Plan | None:
        """A plan of ``ask``, moved onto the target, that was not tried before; None if there is none."""
        tried = self.tried_plans
        for self.duplicates in range(MAX_DUPLICATES):
            asked = self.ask()
            if asked is None:
                return None
            plan = self._within_limits(asked)
            if plan not in tried:
                self.duplicates = 0
                return plan
        self.no_plans_left = True
        return None

    def _within_limits(self, plan: Plan) -> Plan:
        on_range = self.space.decode(self.space.encode(plan))
        if not self.use_full_budget and self.space.meets(on_range, self.limits):
            return on_range
        return self.space.fit_to_target(plan, self.limits)


def best_plan(told: Sequence[tuple[Plan, float | None]]) -> Plan | None:
    """Plan of the highest score, the first of equals; None without a score."""
    scored = [(score, plan) for plan, score in told if score is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None
