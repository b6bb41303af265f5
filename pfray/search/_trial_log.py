"""``trials.jsonl``: a line of JSON for every finished trial, the truth about a search. Read and checked here.

Lines are only ever added, and each is on the disk before anything is made of its trial. So a kill can leave half of the
last line and nothing else; whatever else is wrong there was done by others, and is named.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pfray.errors import StorageError, shown
from pfray.search import _plan_file
from pfray.space import CompressionSpace
from pfray.utils.files import write_atomically

# The folder of a search in the folder of its run, and the file of its trials there.
FOLDER, TRIALS = "search", "trials.jsonl"


class Record(BaseModel):
    """One finished trial. ``score`` is None where it failed, and then ``error`` says why."""

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


def read_trials(path: Path, space: CompressionSpace | None = None, trials: int | None = None) -> list[dict[str, Any]]:
    """The records of a ``trials.jsonl``; none where there is no file. Half a last line is dropped from the file.

    space: what every plan has to fit. trials: the budget of the search, above all numbers. Raises StorageError, which
    names the first line that is no record of such a search.
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
    """(the records, the content without half a last line) of a ``trials.jsonl``, as ``read_trials`` has them.

    Raises ValueError that names the first line that is no record, and why.
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
            records.append(_record(rest, space, trials, seen))  # all but the end of the line
            lines.append(rest)
        except ValueError:
            pass  # half a line that a kill left: its trial is run again
    return records, b"".join(line + b"\n" for line in lines)


def checksum(records: Sequence[dict[str, Any]]) -> int:
    """Of the lines that hold these records."""
    total = 0
    for record in records:
        total = add_line(total, json.dumps(record))
    return total


def add_line(total: int, line: str) -> int:
    """The checksum ``total`` with one more line."""
    return zlib.crc32(line.encode(), total)


def _record(line: bytes, space: CompressionSpace | None, trials: int | None, seen: set[int]) -> dict[str, Any]:
    """The record of a line, its number added to ``seen``. Raises ValueError with the reason where it is none."""
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
    if space is not None and (wrong := _plan_file.mistakes(record["plan"], space)):
        raise ValueError(f"the plan is not one of this search: {wrong[0]}")
    seen.add(number)
    return record
