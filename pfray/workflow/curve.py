"""A training's curve in its folder: a line an epoch, written by its worker and read by the driver while it goes on.

A second file, replaced every few seconds, says how far the present epoch is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pfray.storage.run_folder import curve_of, running_of
from pfray.training.pace import in_words
from pfray.utils.files import append_line, read_records, write_atomically

# Called with the epochs done, the loss, and words for the user. Within an epoch the share of it counts too; there, and
# before the first, the loss is None.
Report = Callable[[float, float | None, str], None]


def add_line(folder: Path, **entry: float | str) -> None:
    """Append a line to the curve's file."""
    append_line(curve_of(folder), json.dumps(entry))


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Epoch and loss of each epoch of the training in ``folder``; for an epoch repeated after a crash, the last values.
    """
    return sorted({e["epoch"]: e for e in read_lines(folder, "epoch")}.values(), key=lambda entry: entry["epoch"])


def read_lines(folder: Path, key: str) -> list[dict[str, Any]]:
    """Lines of the curve's file that have ``key`` (``epoch``, ``error`` or ``note``) and values of the right types.

    A last line that is still being written is left out.
    """
    path = curve_of(folder)
    lines = read_records(path)[0] if path.exists() else []
    types: dict[str, type] = {"epoch": int, "loss": float} if key == "epoch" else {key: str}
    return [entry for entry in lines if all(type(entry.get(name)) is kind for name, kind in types.items())]


def write_running(folder: Path, entry: Mapping[str, float]) -> None:
    """entry: ``done``, the epochs and the share of the one that goes on, and its pace."""
    write_atomically(running_of(folder), json.dumps(entry))


def write_words(folder: Path, words: str) -> None:
    """Say where the algorithm's ``finish`` is, before a training."""
    write_atomically(running_of(folder), json.dumps({"words": words}))


def report_epochs(folder: Path, told: int, report: Report) -> int:
    """Report every epoch that ended after ``told`` epochs were reported. Returns the epochs reported."""
    for entry in read_curve(folder):
        if entry["epoch"] > told:
            told = int(entry["epoch"])
            report(told, entry["loss"], _joined(f"loss {entry['loss']:.4f}", in_words(entry)))
    return told


def report_running(folder: Path, told: float, report: Report) -> float:
    """Report the share of the epoch that goes on, if it is more than ``told``. Returns what was reported last."""
    entry = _running(folder)
    done = entry.get("done", 0.0)
    if done <= told:
        return told
    far = f"epoch {int(done) + 1}, {done % 1:.0%}".replace("%", " %")
    report(done, None, _joined(far, in_words(entry)))
    return done


def report_words(folder: Path, told: str, report: Report) -> str:
    """Report the words of a ``finish``, if they are others than ``told``. Returns the last ones."""
    words = _running(folder).get("words", told)
    if words != told:
        report(0.0, None, words)
    return words


def _running(folder: Path) -> dict[str, Any]:
    try:
        return json.loads(running_of(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nothing has taken long yet
        return {}


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))
