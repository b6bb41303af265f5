"""What a report is made of, read from a run's folder, which may be damaged or a stranger's: looked at once, here.

Afterwards every section is a mapping or missing, every trial has a number and an origin, and every text can be written.
Single values stay as they are: ``figures.number`` gives None for what is no number, and the page escapes all texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfray.errors import StorageError, short
from pfray.utils.files import read_records

REMEDY = "Remedy: name the folder of a finished run"
SECTIONS = (
    "target", "teacher", "uniform", "allocate", "compressed", "exported", "plan", "uniform_plan", "choice", "trials",
    "seconds",
)  # fmt: skip


def read_summary(path: Path) -> dict[str, Any]:
    """``summary.json``. Raises StorageError, in one line, where it is missing, damaged or of another form."""
    try:
        # JSON has no NaN, Python's writes one all the same; it means the number is not known.
        summary = _writable(json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None))
    except (OSError, ValueError, RecursionError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({short(str(error))})"
        raise StorageError(f"{path}: {reason}. {REMEDY}") from error
    if not isinstance(summary, dict):
        raise StorageError(f"{path}: not a run's summary. {REMEDY}")
    for section in SECTIONS:
        _check_mapping(path, section, summary.get(section))
    stored = (summary.get("exported") or {}).get("stored")
    _check_mapping(path, "exported.stored", stored)
    for layer, record in (stored or {}).items():
        _check_mapping(path, f"exported.stored.{short(str(layer))}", record, optional=False)
    rescored = (summary.get("choice") or {}).get("rescored") or []
    if not isinstance(rescored, list) or not all(isinstance(each, dict) and _has_number(each) for each in rescored):
        raise StorageError(f"{path}: choice.rescored is '{short(str(rescored))}', not a list of trials. {REMEDY}")
    return summary


def read_trials(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(trials by number, lines that are none). Raises StorageError where the file cannot be read."""
    try:
        records, unreadable = read_records(path)
    except (OSError, RecursionError) as error:
        reason = short(str(getattr(error, "strerror", error)))
        raise StorageError(f"{path}: cannot be read ({reason}). {REMEDY}") from error
    trials = [
        {**_writable(record), "origin": str(_writable(record.get("origin")))}
        for record in records
        if _has_number(record) and isinstance(record.get("measurement"), dict | None)
    ]
    return sorted(trials, key=lambda trial: trial["trial"]), unreadable + len(records) - len(trials)


def _check_mapping(path: Path, section: str, value: Any, *, optional: bool = True) -> None:
    if not (isinstance(value, dict) or (optional and value is None)):
        raise StorageError(f"{path}: {section} is '{short(str(value))}', not a mapping. {REMEDY}")


def _has_number(record: Mapping[str, Any]) -> bool:
    return type(record.get("trial")) is int and 0 <= record["trial"] < 2**31


def _writable(value: Any) -> Any:
    """JSON may hold halves of characters, which no file can."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_writable(each) for each in value]
    if isinstance(value, dict):
        return {_writable(key): _writable(each) for key, each in value.items()}
    return value
