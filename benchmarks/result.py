"""The closing line of every benchmark, also of a skipped one."""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"

# The exit code of a benchmark that did not run because its data is missing (what automake's and meson's tests use).
SKIPPED = 77

_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


def close(name: str, value: float, unit: str, goal: str) -> None:
    """Print one line of JSON: name, value, unit, goal, and whether the value meets the goal (such as ``<= 1.25``)."""
    sign, bound = goal.split()
    ok = bool(_COMPARE[sign](value, float(bound)))
    print(json.dumps({"name": name, "value": float(f"{value:.6g}"), "unit": unit, "goal": goal, "ok": ok}), flush=True)


def is_missing(name: str, paths: Sequence[Path], remedy: str) -> bool:
    """True if one of ``paths`` is missing; then one line says so, and the benchmark ends with SKIPPED."""
    missing = [path for path in paths if not path.exists()]
    if missing:
        print(f"{name}: skipped, {missing[0]} is missing. Remedy: {remedy}", flush=True)
    return bool(missing)
