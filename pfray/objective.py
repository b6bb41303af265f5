"""Score functions: one number from the measurements of a trial and of the teacher; higher is better.

Notation: accuracy A, error E = 1 - A, cost C; the teacher has A_0 and C_0. The thresholds A_th, T_th and C_th are
``Thresholds``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from pfray.utils.settings import Section

if TYPE_CHECKING:  # imports torch, which the experiment's schema must not need for the thresholds
    from pfray.measure.evaluation import Measurement

# Slope of the sigmoids of ``ddc``.
SLOPE = 15.0


class Thresholds(Section):
    """Thresholds of the objective ``ddc``, where each factor of the reward is 1/2 (Pahwa et al. 2019, section 3.3).

    accuracy: share of the teacher's accuracy, A_th. latency: share of its inference time, T_th. compression: share of
    its parameters that remain, C_th.
    """

    accuracy: float = Field(0.9, gt=0, le=1)
    latency: float = Field(0.3, gt=0, le=1)
    compression: float = Field(0.6, gt=0, le=1)


@dataclass(frozen=True)
class Objective:
    """name: a key of ``OBJECTIVES``. cost: the field of a measurement that is ``C``."""

    name: str
    cost: str = "nonzero_params"
    thresholds: Thresholds = field(default_factory=Thresholds)


def score(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    """Score of a trial; higher is better."""
    return OBJECTIVES[objective.name](objective, measured, teacher)


def standard_error(objective: Objective, measured: Measurement, teacher: Measurement) -> float | None:
    """Standard error of the score: half its change between one standard error of the accuracy below and above.

    For ``agreement`` the agreement takes the accuracy's place. None if its standard error is unknown.
    """
    field = "agreement" if objective.name == "agreement" else "accuracy"
    value, error = getattr(measured, field), getattr(measured, f"{field}_error")
    if value is None or error is None:
        return None
    high, low = (score(objective, replace(measured, **{field: value + sign * error}), teacher) for sign in (1, -1))
    return abs(high - low) / 2


def accuracy(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    """A, where the target is a hard limit (Wu et al. 2018, section 3; PocketFlow's ``single-obj``)."""
    return measured.accuracy


def agreement(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    """-KL(teacher || student) on the validation images: finer than ``accuracy``, and without labels."""
    assert measured.agreement is not None, "measured against the teacher"
    return measured.agreement


def accuracy_and_cost(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    """A log(1 + r), r = 1 - C / C_0 (PocketFlow's ``multi-obj``, weight_sparsification/rl_helper.py)."""
    return measured.accuracy * math.log1p(_saved(objective, measured, teacher))


def amc(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    """-E log(C) (He et al. 2018, AMC, section 3.4): R_FLOPs if the cost is MACs, R_Param if it is parameters."""
    return -(1 - measured.accuracy) * math.log(getattr(measured, objective.cost))


def ddc(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    """R1(A) R2(T) R3(C) with thresholds (Pahwa et al. 2019, section 3.3, equations 3 to 6).

    R1 = 1 - 1 / (1 + exp(15 (A / A_0 - A_th))), R2 = 1 / (1 + exp(15 (T / T_0 - T_th))) and
    R3 = 1 / (1 + exp(15 (C / C_0 - C_th))): shifted sigmoids, 1/2 at their threshold and nowhere flat. T is the
    inference time and C the number of remaining parameters, for every unit of the target.
    """
    from scipy.special import expit  # takes long to import, for this one score

    assert measured.latency_ms is not None
    assert teacher.latency_ms is not None
    wanted = objective.thresholds
    accuracy = measured.accuracy / max(teacher.accuracy, 1e-9) - wanted.accuracy
    latency = measured.latency_ms / teacher.latency_ms - wanted.latency
    params = measured.nonzero_params / teacher.nonzero_params - wanted.compression
    return float(np.prod(expit(SLOPE * np.array([accuracy, -latency, -params]))))


def n2n(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    """r (2 - r) A / A_0, r = 1 - C / C_0 (Ashok et al. 2018, "N2N learning", section 3.3), without thresholds."""
    saved = _saved(objective, measured, teacher)
    return saved * (2 - saved) * measured.accuracy / max(teacher.accuracy, 1e-9)


def _saved(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    return 1 - getattr(measured, objective.cost) / getattr(teacher, objective.cost)


OBJECTIVES: dict[str, Callable[[Objective, Measurement, Measurement], float]] = {
    function.__name__: function for function in (accuracy, agreement, accuracy_and_cost, amc, ddc, n2n)
}
# Objectives that weigh the cost too: their plans must meet the target, but need not use it up.
WEIGH_COST = frozenset({"accuracy_and_cost", "amc", "ddc", "n2n"})
NEEDS_LATENCY = frozenset({"ddc"})
