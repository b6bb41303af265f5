"""Summary of a finished run, written to ``summary.json`` and read from it. The file may be damaged or untrusted.

After reading, every section is a mapping or missing, and every text can be written. Single values are not checked:
``number`` gives None for a value that is no number, and the report escapes all texts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pfray.errors import StorageError, short
from pfray.reporting.metric import PrintedMetric
from pfray.reporting.report_input import REMEDY, Record, has_number, number, writable
from pfray.space import Limits
from pfray.units import UNITS, Amount, Unit

# Sections that are None if missing; the others in SECTIONS are then empty.
OPTIONAL = ("limits", "teacher", "uniform", "allocate", "compressed", "exported")
SECTIONS = (
    *OPTIONAL, "target", "metric", "costs", "shared", "plan", "uniform_plan", "choice", "trials", "seconds",
    "own_seconds",
)  # fmt: skip
# Models of a run, by the names of their sections.
MODELS = ("teacher", "uniform", "allocate", "compressed")
# Keys that a file may lack: baselines that were not trained, and limits, which earlier versions did not write.
LEFT_OUT = ("limits", "uniform", "allocate")


@dataclass(frozen=True)
class Summary:
    """Results of one run.

    target: the goals as given, numbers or texts such as ``0.4x``, by key of the experiment's target.
    limits: the target's costs as absolute numbers, by unit; None in a file of an earlier version.
    measured_on: the split of the results, ``test``, or ``validation`` for a run without test data.
    teacher, uniform, allocate, compressed: measurements on that split (``Measurement.to_dict``); None for a
        baseline that was not trained.
    exported: size, latency and outputs of the exported file, and ``stored``, each layer's type; None without a file.
    metric: the task's. costs: of each model, by unit of a target, the latency as measured.
    shared: name of the model that has the same plan, and so the same training, by name.
    plan, uniform_plan: value by knob. objective: name of the trials' score. choice: why the plan was chosen.
    trials: counts. seconds: by stage, all attempts of the run added up. own_seconds: by stage, of the last attempt.
    """

    experiment: str
    learner: str | None
    searcher: str | None
    seed: int | None
    measured_on: str
    objective: str | None
    target: Record
    limits: Record | None
    teacher: Record | None
    uniform: Record | None
    allocate: Record | None
    compressed: Record | None
    exported: Record | None
    metric: PrintedMetric
    costs: Mapping[str, Record]
    shared: Record
    plan: Record
    uniform_plan: Record
    choice: Record
    trials: Record
    seconds: Record
    own_seconds: Record

    @classmethod
    def read(cls, path: Path) -> Summary:
        """The summary in a file. Raises StorageError, in one line, if it is missing, damaged or of another form."""
        try:
            # JSON has no NaN, but Python writes it. Such a number is unknown.
            entries = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
        except (OSError, ValueError, RecursionError) as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({short(str(error))})"
            raise StorageError(f"{path}: {reason}. {REMEDY}") from error
        try:
            return cls.parse(entries)
        except (ValueError, RecursionError) as error:
            raise StorageError(f"{path}: {short(str(error), 300)}. {REMEDY}") from error

    @classmethod
    def parse(cls, entries: Any) -> Summary:
        """The summary from plain data of ``to_dict``. Raises ValueError for data of another form."""
        entries = writable(entries)
        if not isinstance(entries, dict):
            raise ValueError("not a run's summary")
        sections = {name: _section(name, entries.get(name)) for name in SECTIONS}
        _check_stored((sections["exported"] or {}).get("stored"))
        _check_rescored((sections["choice"] or {}).get("rescored"))
        _check_list("exported.slow_operators", (sections["exported"] or {}).get("slow_operators"))
        for model, own in (sections["costs"] or {}).items():
            _section(f"costs.{short(str(model))}", own, optional=False)
        found: dict[str, Any] = {n: value if n in OPTIONAL else value or {} for n, value in sections.items()}
        # Only from Python may a run have no test data.
        found["measured_on"] = "validation" if entries.get("measured_on") == "validation" else "test"
        for name in ("learner", "searcher", "objective"):
            found[name] = None if entries.get(name) is None else str(entries[name])
        if found["limits"] is None:
            found["limits"] = _limits_of_old(found)
        found["costs"] = found["costs"] or _costs_of_old(found)
        found["metric"] = PrintedMetric.parse(found["metric"])
        seed = entries.get("seed")
        return cls(str(entries.get("experiment") or "run"), seed=seed if type(seed) is int else None, **found)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``summary.json``."""
        found = {field.name: getattr(self, field.name) for field in fields(self)} | {"metric": asdict(self.metric)}
        return {name: value for name, value in found.items() if value is not None or name not in LEFT_OUT}

    @property
    def units(self) -> list[Unit]:
        """Units of the target, in order."""
        return [UNITS[name] for name in self.target if name in UNITS]

    def cost(self, model: str, unit: str) -> float | None:
        """A model's cost in a unit of a target; None if it is not known."""
        return number(self.costs.get(model), unit)

    def latencies(self) -> tuple[float | None, float | None]:
        """Milliseconds of the result and of the teacher: from their files, timed in turns, else from the measurements.
        """
        found = number(self.exported, "latency_ms"), number(self.exported, "teacher_latency_ms")
        if None in found:
            found = number(self.compressed, "latency_ms"), number(self.teacher, "latency_ms")
        return found


def absolute_limits(costs: Mapping[str, Amount], limits: Limits, exported: Record | None) -> dict[str, float]:
    """Limits of a finished run, by unit: ``limits``, except a latency relative to the teacher's.

    That limit is relative to the teacher's file as timed in turns with the result's, because the machine may have run
    at another speed during the search.
    """
    timed = number(exported, "teacher_latency_ms")
    latency = costs.get("latency_ms")
    return {**limits} if latency is None or timed is None else {**limits, "latency_ms": latency.absolute(timed)}


def _limits_of_old(sections: Mapping[str, Any]) -> dict[str, float]:
    """Limits of a summary of an earlier version, which has none: the target's, as far as their wholes are known.

    sections: by name.
    """
    limits: dict[str, float] = {}
    params = number(sections["teacher"], "params")
    wholes = {
        "latency_ms": number(sections["exported"], "teacher_latency_ms"),
        "size_bytes": None if params is None else 4 * params,  # in float32
    }
    for name, unit in UNITS.items():
        with contextlib.suppress(ValueError):
            amount = unit.amount(sections["target"].get(name))
            whole = wholes.get(name) if amount.relative else 1.0
            if whole is not None:
                limits[name] = amount.absolute(whole)
    return limits


def _costs_of_old(sections: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Costs of a summary of an earlier version, which has none: from the measurements, as far as they are known."""
    costs: dict[str, dict[str, float]] = {}
    for model in MODELS:
        measured = sections[model]
        found = {"params": number(measured, "nonzero_params")}
        found |= {name: number(measured, name) for name in ("macs", "latency_ms")}
        costs[model] = {name: value for name, value in found.items() if value is not None}
    return costs


def _section(name: str, value: Any, *, optional: bool = True) -> Any:
    if not (isinstance(value, dict) or (optional and value is None)):
        raise ValueError(f"{name} is '{short(str(value))}', not a mapping")
    return value


def _check_stored(stored: Any) -> None:
    for layer, record in (_section("exported.stored", stored) or {}).items():
        _section(f"exported.stored.{short(str(layer))}", record, optional=False)


def _check_rescored(rescored: Any) -> None:
    _check_list("choice.rescored", rescored)
    if not all(has_number(each) for each in rescored or []):
        raise ValueError(f"choice.rescored is '{short(str(rescored))}', not a list of trials")


def _check_list(name: str, records: Any) -> None:
    if not isinstance(records or [], list) or not all(isinstance(each, dict) for each in records or []):
        raise ValueError(f"{name} is '{short(str(records))}', not a list of mappings")
