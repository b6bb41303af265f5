"""Score functions: from a trial's measurement, and the teacher's, to one number; higher is better.

Notation: accuracy A, error E = 1 - A, cost C; those of the teacher are A_0 and C_0. The thresholds A_th, T_th and C_th
are ``config.Thresholds``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pfray.config import Thresholds
from pfray.measure import Measurement

# The field of a measurement that a target's unit limits.
COST = {
    "sparsity": "nonzero_params",
    "params": "nonzero_params",
    "macs": "macs",
    "bits": "stored_bits",
    "size_bytes": "stored_bits",
    "latency_ms": "macs",
}


@dataclass(frozen=True)
class Objective:
    """name: a key of ``OBJECTIVES``. cost: the field of a measurement that ``C`` stands for."""

    name: str
    cost: str = "nonzero_params"
    thresholds: Thresholds = field(default_factory=Thresholds)


def score(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    """The score of a trial."""
    return OBJECTIVES[objective.name](objective, measured, teacher)


def standard_error(objective: Objective, measured: Measurement, teacher: Measurement) -> float | None:
    """The standard error of the score: what one of the accuracy (or agreement) up and down makes of it, halved."""
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
    """-KL(teacher || student) on the validation images: as ``accuracy``, with finer steps and no labels."""
    assert measured.agreement is not None, "measured beside the teacher"
    return measured.agreement


def accuracy_and_cost(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    """A log(1 + r), r = 1 - C / C_0 (PocketFlow's ``multi-obj``, weight_sparsification/rl_helper.py)."""
    return measured.accuracy * math.log1p(_saved(objective, measured, teacher))


def amc(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    """-E log(C) (He et al. 2018, AMC, section 3.4): R_FLOPs where the cost is MACs, R_Param where it is parameters."""
    return -(1 - measured.accuracy) * math.log(getattr(measured, objective.cost))


def ddc(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    """R1(A) R2(T) R3(C) with thresholds (Pahwa et al. 2019, equations 3 to 6), each factor at most 1.

    R1 = min(1, (A / A_0) / A_th), R2 = min(1, T_th / T), T the inference time over the teacher's, and
    R3 = min(1, r / C_th), r = 1 - C / C_0.
    """
    assert measured.latency_ms is not None
    assert teacher.latency_ms is not None
    wanted = objective.thresholds
    accuracy_kept = measured.accuracy / max(teacher.accuracy, 1e-9)
    speed_up = teacher.latency_ms / measured.latency_ms
    saved = max(0.0, _saved(objective, measured, teacher))
    rewards = (accuracy_kept / wanted.accuracy, speed_up * wanted.latency, saved / wanted.compression)
    return math.prod(min(1.0, reward) for reward in rewards)


def n2n(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    """r (2 - r) A / A_0, r = 1 - C / C_0 (Ashok et al. 2018, "N2N learning", section 3.3), without thresholds."""
    saved = _saved(objective, measured, teacher)
    return saved * (2 - saved) * measured.accuracy / max(teacher.accuracy, 1e-9)


def _saved(objective: Objective, measured: Measurement, teacher: Measurement) -> float:
    return 1 - getattr(measured, objective.cost) / getattr(teacher, objective.cost)


OBJECTIVES: dict[str, Callable[[Objective, Measurement, Measurement], float]] = {
    function.__name__: function for function in (accuracy, agreement, accuracy_and_cost, amc, ddc, n2n)
}
# Those that weigh the cost too: their plans need only keep the target, not use it up.
WEIGH_COST = frozenset({"accuracy_and_cost", "amc", "ddc", "n2n"})
NEEDS_LATENCY = frozenset({"ddc"})
