"""Safe reading of a run's files, which may be damaged or untrusted: numbers, texts and the trials of ``trials.jsonl``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfray.errors import StorageError, short
from pfray.utils.files import read_records

Record = Mapping[str, Any]

REMEDY = "Remedy: name the folder of a finished run"


def number(record: Record | None, key: str) -> float | None:
    """``record[key]`` if it is a finite number, else None. True and False count as 1 and 0."""
    value = (record or {}).get(key)
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def read_trials(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(trials, ordered by number; count of lines without a trial). Every trial has a number and an origin.

    Raises StorageError if the file cannot be read.
    """
    try:
        records, unreadable = read_records(path)
    except (OSError, RecursionError) as error:
        reason = short(str(getattr(error, "strerror", error)))
        raise StorageError(f"{path}: cannot be read ({reason}). {REMEDY}") from error
    trials = [
        {**writable(record), "origin": str(writable(record.get("origin")))}
        for record in records
        if has_number(record) and isinstance(record.get("measurement"), dict | None)
    ]
    return sorted(trials, key=lambda trial: trial["trial"]), unreadable + len(records) - len(trials)


def has_number(record: Record) -> bool:
    """True if a record has a valid trial number."""
    return type(record.get("trial")) is int and 0 <= record["trial"] < 2**31


def writable(value: Any) -> Any:
    """``value`` with lone surrogates escaped, which JSON may hold and a file may not."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [writable(each) for each in value]
    if isinstance(value, dict):
        return {writable(key): writable(each) for key, each in value.items()}
    return value
