"""Tree-structured Parzen estimator (Bergstra et al. 2011), by hyperopt.

Each knob's prior is a normal around its position in the first plan (``allocate``, else uniform). The estimator learns
from plans as measured, that is after they were moved onto the target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from hyperopt import JOB_STATE_DONE, JOB_STATE_NEW, STATUS_FAIL, STATUS_OK, Domain, Trials, hp, tpe
from pydantic import Field

from pfray.search.base import PlanSearcher
from pfray.space import Plan

# Standard deviation of the prior of a searched setting, as a share of its range.
FREE_SPREAD = 0.3
# Hyperopt's maximum number of good trials.
GOOD = 25


@dataclass(frozen=True)
class Settings:
    """spread: standard deviation of a plan's total move from the first one under the prior. Per knob, as a share of its
    range, it is divided by the square root of the number of knobs. startup: plans drawn from the prior first.

    gamma: of n trials, ceil(gamma * sqrt(n)) count as good. candidates: draws of which the one of highest expected
    improvement is tried. Few, because the expected improvement is largest where trials are sparse, so many draws lead
    far away from all trials. memory: trials of the estimator, the ``GOOD`` best of all and the latest others. The time
    of a suggestion is proportional to it, and old trials get little weight anyway.
    """

    spread: Annotated[float, Field(gt=0, le=10)] = 0.4
    startup: Annotated[int, Field(ge=1)] = 10
    gamma: Annotated[float, Field(gt=0)] = 0.5
    candidates: Annotated[int, Field(ge=1)] = 5
    memory: Annotated[int, Field(ge=100)] = 1000


class TPE(PlanSearcher):
    settings_type = Settings

    @property
    def _deviation(self) -> np.ndarray:
        return np.where(self.space.free, FREE_SPREAD, self.deviations(self.settings.spread))

    def ask(self) -> Plan:
        trials = self._history()
        searched = len(trials.trials) >= self.settings.startup
        self.learned = searched
        if not searched:
            return self.sample_around(self.center, self.settings.spread)
        if self.duplicates:
            # The densities are narrow by now, and another draw would most likely be a duplicate as well.
            return self.sample_near_best(self.settings.spread)
        return self.space.decode(self.center + self._deviation * self._suggest(trials))

    def _suggest(self, trials: Trials) -> np.ndarray:
        """Hyperopt's choice ``(L,)``, in standard deviations of the prior."""
        document = tpe.suggest(
            [len(trials.trials)],
            _domain(tuple(self.space.names)),
            trials,
            seed=int(self.rng.integers(2**31)),
            n_startup_jobs=0,
            gamma=self.settings.gamma,
            n_EI_candidates=self.settings.candidates,
            verbose=False,
        )[0]
        return np.array([document["misc"]["vals"][name][0] for name in self.space.names])

    def _history(self) -> Trials:
        """Trials in hyperopt's format; running ones count as bad, so that none is suggested twice."""
        trials = Trials()
        told = [(plan, score, True) for plan, score in kept_trials(self.history, self.settings.memory)]
        told += [(entry["plan"], None, False) for entry in self.pending.values()]
        trials.insert_trial_docs([self._document(number, *trial) for number, trial in enumerate(told)])
        trials.refresh()
        return trials

    def _document(self, number: int, plan: Plan, score: float | None, finished: bool) -> dict[str, Any]:
        drawn = (self.space.encode(plan) - self.center) / self._deviation
        names = self.space.names
        result = {"status": STATUS_FAIL} if score is None else {"status": STATUS_OK, "loss": -score}
        return {
            "tid": number,
            "exp_key": None,
            "spec": None,
            "owner": None,
            "version": 0,
            "book_time": None,
            "refresh_time": None,
            "state": JOB_STATE_DONE if finished else JOB_STATE_NEW,
            "result": result,
            "misc": {
                "tid": number,
                "cmd": None,
                "workdir": None,
                "idxs": {name: [number] for name in names},
                "vals": {name: [float(value)] for name, value in zip(names, drawn, strict=True)},
            },
        }


def kept_trials(
    told: list[tuple[Plan, float | None]], memory: int
) -> list[tuple[Plan, float | None]]:
    """The ``GOOD`` best trials and the latest others, ``memory`` in total, in their order."""
    if len(told) <= memory:
        return told
    scores = [-math.inf if score is None else score for _, score in told]
    best = set(sorted(range(len(told)), key=lambda i: -scores[i])[:GOOD])
    others = [i for i in range(len(told)) if i not in best]
    return [told[i] for i in sorted([*best, *others[len(best) - memory :]])]


@lru_cache(maxsize=1)
def _domain(names: tuple[str, ...]) -> Domain:
    """Hyperopt's domain, cached because it is stateless and takes half the time of a suggestion."""
    return Domain(_never_called, {name: hp.normal(name, 0.0, 1.0) for name in names})


def _never_called(_: Any) -> float:
    raise AssertionError("the plans are measured by trials, not by hyperopt")
