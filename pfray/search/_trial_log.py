"""Reads and checks ``trials.jsonl``, the authoritative log of a search: one line of JSON per finished trial.

Lines are only appended, and each is on disk before its trial is used. So a kill can leave half of the last line and
nothing else; any other damage was done from outside, and is reported.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pfray.errors import StorageError, shown
from pfray.search import _plan_file
from pfray.space import CompressionSpace
from pfray.utils.files import write_atomically

# The folder of a search in the folder of its run, and the file of its trials there.
FOLDER, TRIALS = "search", "trials.jsonl"

# Ends the origin of plans that a searcher draws before it has learned anything; its name comes before.
RANDOM_START = ", random start"


class Record(BaseModel):
    """One finished trial. A failed one has the score None and the reason in ``error``."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    trial: int
    origin: str
    plan: dict[str, float]
    score: float | None
    standard_error: float | None
    cost: dict[str, float]
    measurement: dict[str, float | None] | None
    seconds: float | None
    finished_at: float | None
    rounds: int | None
    error: str | None
    halved_batch: bool = False


def record_of(
    entry: Mapping[str, Any], cost: dict[str, float], result: Mapping[str, Any], failure: str | None
) -> dict[str, Any]:
    """Record of a finished trial. entry: its number, origin and plan. result: as Tune gives it, flat."""
    return {
        **entry,
        "score": None if failure else result["score"],
        "standard_error": None if failure else _finite(result.get("standard_error")),
        "cost": cost,
        # Tune flattens nested results, as ``measurement/accuracy``.
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


def read_trials(path: Path, space: CompressionSpace | None = None, trials: int | None = None) -> list[dict[str, Any]]:
    """Records of a ``trials.jsonl``; empty without the file. An incomplete last line is removed from the file.

    space: every plan must be valid in it. trials: budget of the search, above every trial number. Raises StorageError
    with the first invalid line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read ({error.strerror or error}). Remedy: put the file back, or --force to begin anew"
        ) from error
    try:
        records, whole = parse(content, space, trials)
    except ValueError as error:
        raise StorageError(
            f"{path}, {error}. Remedy: mend the line or put the file back; without the line its trial is lost, and "
            "another one is run in its place"
        ) from error
    if whole != content:
        write_atomically(path, whole)
    return records


def parse(
    content: bytes, space: CompressionSpace | None = None, trials: int | None = None
) -> tuple[list[dict[str, Any]], bytes]:
    """(records, content without an incomplete last line) of a ``trials.jsonl``; arguments as in ``read_trials``.

    Raises ValueError with the number of the first invalid line and the reason.
    """
    *lines, rest = content.split(b"\n")
    records: list[dict[str, Any]] = []
    seen: set[int] = set()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(line, space, trials, seen))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    if rest:
        try:
            records.append(_record(rest, space, trials, seen))  # only the newline is missing
            lines.append(rest)
        except ValueError:
            pass  # half a line, left by a kill: its trial is run again
    return records, b"".join(line + b"\n" for line in lines)


def checksum(records: Sequence[dict[str, Any]]) -> int:
    """Checksum of the lines of these records."""
    total = 0
    for record in records:
        total = add_line(total, json.dumps(record))
    return total


def add_line(total: int, line: str) -> int:
    """Checksum ``total`` extended by one line."""
    return zlib.crc32(line.encode(), total)


def _record(line: bytes, space: CompressionSpace | None, trials: int | None, seen: set[int]) -> dict[str, Any]:
    """Record of a line, whose number is added to ``seen``. Raises ValueError with the reason for an invalid one."""
    try:
        record = json.loads(line)
        Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])[:60]
        raise ValueError(f"no record of a trial ({key}: {first['msg'].lower()})" if key else
                         f"{shown(record)} is no record of a trial") from error  # fmt: skip
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(line.decode(errors='replace'))} is no record of a trial") from error
    number, score = record["trial"], record["score"]
    if number < 0 or (trials is not None and number >= trials):
        raise ValueError(f"trial {shown(number)} is not one of this search's, 0 to {trials and trials - 1}")
    if number in seen:
        raise ValueError(f"trial {number} is there already")
    if (score is None) == (record["error"] is None):
        raise ValueError(f"trial {number} has a score and an error, or neither")
    if space is not None and (wrong := _plan_file.plan_mistakes(record["plan"], space)):
        raise ValueError(f"the plan is not one of this search: {wrong[0]}")
    seen.add(number)
    return record


def _finite(number: float | None) -> float | None:
    """The number; None if it is missing, infinite or NaN, which ``trials.jsonl`` cannot hold."""
    return number if number is not None and math.isfinite(number) else None
