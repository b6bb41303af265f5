"""A run's summary and its trials, made up, for the tests of what is said and drawn of them."""

from __future__ import annotations

import copy
from typing import Any

from pfray.reporting.summary import Summary


def measurement(**changes: Any) -> dict[str, Any]:
    return {
        "accuracy": 0.978, "loss": 0.08, "params": 3_200_000, "nonzero_params": 3_200_000, "macs": 11_600_000,
        "size_bytes": 12_900_000, "latency_ms": None, **changes,
    }  # fmt: skip


KNOBS = [f"features.{i}.0" for i in range(1, 27)] + ["classifier"]
SUMMARY: dict[str, Any] = {
    "experiment": "mobilenet_sparse", "learner": "weight_sparse", "searcher": "tpe", "seed": 0,
    "target": {"sparsity": 0.75}, "limits": {"sparsity": 0.75},
    "teacher": measurement(),
    "uniform": measurement(accuracy=0.971, loss=0.11, nonzero_params=820_000, size_bytes=3_700_000),
    "allocate": measurement(accuracy=0.973, loss=0.1, nonzero_params=820_000, size_bytes=3_700_000),
    "compressed": measurement(accuracy=0.975, loss=0.09, nonzero_params=810_000, size_bytes=3_600_000),
    "exported": {"path": "model.tflite", "size_bytes": 4_100_000, "accuracy": 0.974, "latency_ms": 5.9,
                 "teacher_latency_ms": 6.1, "max_abs_diff": 2.5e-6},
    "plan": {knob: 0.5 + 0.45 * i / len(KNOBS) for i, knob in enumerate(KNOBS)},
    "uniform_plan": dict.fromkeys(KNOBS, 0.75),
    "trials": {"finished": 4, "failed": 1, "best": 3},
    "seconds": {"data": 0.4, "teacher": 61.2, "search": 93.7, "finalize": 120.1, "export": 8.3},
}  # fmt: skip


def trial(number: int, origin: str, score: float | None, error: str | None = None) -> dict[str, Any]:
    measured = None if score is None else measurement(accuracy=score, nonzero_params=810_000 + number, size_bytes=None)
    return {
        "trial": number, "origin": origin, "plan": {"features.1.0": 0.75}, "score": score,
        "cost": {"sparsity": 0.75, "params": 810_000}, "measurement": measured, "seconds": 0.4, "error": error,
    }  # fmt: skip


TRIALS = [
    trial(0, "uniform", 0.91),
    trial(1, "heuristic", 0.93),
    trial(2, "searched", None, "RuntimeError: weight <3> & loss is nan\n  at step 7"),
    trial(3, "searched", 0.95),
    trial(4, "random", 0.90),
]


def changed(**changes: Any) -> dict[str, Any]:
    """SUMMARY with single fields of its records replaced: ``compressed={"accuracy": 0.9}``."""
    summary = copy.deepcopy(SUMMARY)
    for key, value in changes.items():
        summary[key] = {**summary.get(key, {}), **value} if isinstance(value, dict) else value
    return summary


def summary(**changes: Any) -> Summary:
    """The summary of ``changed``."""
    return Summary.parse(changed(**changes))


STORED = {
    "conv1": {"bits": None, "type": "float", "reason": "not quantized", "rounds": False},
    "a": {"bits": 3, "type": "int4", "reason": "exact; its inputs are rounded to 8 bits as they come", "rounds": True},
    "b": {"bits": 5, "type": "int8", "reason": "to the nearest, at most 0.4 % of the largest weight off",
          "rounds": True},
    "c": {"bits": 6, "type": "int8", "reason": "exact", "rounds": False},
    "d": {"bits": 2, "type": "float", "reason": "with int8's nearest levels the outputs <differ>", "rounds": False},
}  # fmt: skip
