"""The tree-structured Parzen estimator (Bergstra et al. 2011), by hyperopt.

Each knob's prior is a normal around its position in the uniform plan. What is told is the plan that was tried, that is
after it was moved onto the target, so that the estimator never learns from a plan nobody measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from hyperopt import JOB_STATE_DONE, JOB_STATE_NEW, STATUS_FAIL, STATUS_OK, Domain, Trials, hp, tpe
from pydantic import Field

from pfray.search.base import PlanSearcher
from pfray.space import Plan


@dataclass(frozen=True)
class Settings:
    """spread: standard deviation of the prior, as a share of a knob's range. startup: plans drawn from the prior first.

    gamma: of n trials, ceil(gamma * sqrt(n)) count as good. candidates: draws among which the expected improvement
    chooses; few, because where neither the good nor the bad trials are dense it is largest, and so many draws lead far
    away from all that was tried.
    """

    spread: Annotated[float, Field(gt=0, le=1)] = 0.15
    startup: Annotated[int, Field(ge=1)] = 10
    gamma: Annotated[float, Field(gt=0)] = 0.5
    candidates: Annotated[int, Field(ge=1)] = 5


class TPE(PlanSearcher):
    settings_type = Settings

    def ask(self) -> Plan:
        trials = self._history()
        self.origin = "random" if len(trials.trials) < self.settings.startup else "searched"
        names = self.space.names
        domain = Domain(_never_called, {name: hp.normal(name, 0.0, 1.0) for name in names})
        document = tpe.suggest(
            [len(trials.trials)],
            domain,
            trials,
            seed=int(self.rng.integers(2**31)),
            n_startup_jobs=self.settings.startup,
            gamma=self.settings.gamma,
            n_EI_candidates=self.settings.candidates,
            verbose=False,
        )[0]
        drawn = np.array([document["misc"]["vals"][name][0] for name in names])
        return self.space.decode(self.center + self.settings.spread * drawn)

    def _history(self) -> Trials:
        """All trials as hyperopt wants them; those still running count as bad, so that none is suggested twice."""
        trials = Trials()
        told = [(record["plan"], record["score"]) for record in self.records]
        told += [(entry["plan"], None) for entry in self.pending.values()]
        trials.insert_trial_docs([self._document(number, *pair) for number, pair in enumerate(told)])
        trials.refresh()
        return trials

    def _document(self, number: int, plan: Plan, score: float | None) -> dict[str, Any]:
        drawn = (self.space.encode(plan) - self.center) / self.settings.spread
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
            "state": JOB_STATE_NEW if score is None and number >= len(self.records) else JOB_STATE_DONE,
            "result": result,
            "misc": {
                "tid": number,
                "cmd": None,
                "workdir": None,
                "idxs": {name: [number] for name in names},
                "vals": {name: [float(value)] for name, value in zip(names, drawn, strict=True)},
            },
        }


def _never_called(_: Any) -> float:
    raise AssertionError("the plans are measured by trials, not by hyperopt")
