"""Table of the final measurements: a row a model, the goal's own unit first, each number with its ratio to the
teacher's."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pfray.reporting.report_input import Record, number
from pfray.reporting.summary import MODELS, Summary
from pfray.units import Unit, latency_text, size_text

# Row of the file that is handed over.
FILE = "model.tflite"


@dataclass(frozen=True)
class Column:
    """title: heading. value(row): its number, None if unknown. text(number): in words."""

    title: str
    value: Callable[[str], float | None]
    text: Callable[[float], str]


def results_table(summary: Summary) -> str:
    """HTML of the table, and a note on the exported file."""
    names = [name for name in MODELS if getattr(summary, name) is not None]
    rows = [*names, *([] if summary.exported is None else [FILE])]
    columns = _columns(summary)
    head = "".join(f"<th scope=col>{html.escape(title)}</th>" for title in (summary.metric.title, *_titles(columns)))
    lines = []
    for row in rows:
        cells = [_metric_cell(summary, row), *(_cell(column, row) for column in columns)]
        lines.append(f"<tr><th scope=row>{_row_title(summary, row)}</th>{''.join(cells)}</tr>")
    body = f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f"<div class=scroll><table>{body}</table></div>{_note(summary)}"


def _columns(summary: Summary) -> list[Column]:
    """All columns but the metric's: the units of the target, then what is left of a measurement."""

    def measured(row: str, key: str) -> float | None:
        return None if row == FILE else number(getattr(summary, row), key)

    def latency(row: str) -> float | None:
        return number(summary.exported, "latency_ms") if row == FILE else measured(row, "latency_ms")

    def file_size(row: str) -> float | None:
        key = {FILE: "size_bytes", "teacher": "teacher_size_bytes"}.get(row)
        return None if key is None else number(summary.exported, key)

    def cost(row: str, unit: Unit) -> float | None:
        return latency(row) if unit.name == "latency_ms" else None if row == FILE else summary.cost(row, unit.name)

    def goal(unit: Unit) -> Column:
        return Column(unit.title.partition(" (")[0], lambda row: cost(row, unit), unit.text)

    def field(key: str, title: str, text: Callable[[float], str] = "{:,.0f}".format) -> Column:
        return Column(title, lambda row: measured(row, key), text)

    shown = [unit.name for unit in summary.units]
    rest = {
        "loss": field("loss", "loss", "{:.4f}".format),
        "all_params": field("params", "all parameters"),
        "params": field("nonzero_params", "parameters that are not zero"),
        "macs": field("macs", "MACs"),
        "packed": field("size_bytes", "packed file", size_text),
        "tflite": Column(".tflite file", file_size, size_text),
        "latency_ms": Column("latency", latency, latency_text),
    }
    return [*map(goal, summary.units), *(column for name, column in rest.items() if name not in shown)]


def _titles(columns: list[Column]) -> list[str]:
    return [column.title for column in columns]


def _row_title(summary: Summary, row: str) -> str:
    shared = summary.shared.get(row)
    return row if shared is None else f"{row}<small>same plan and training as {html.escape(str(shared))}</small>"


def _metric_cell(summary: Summary, row: str) -> str:
    value = number(summary.exported if row == FILE else getattr(summary, row), "accuracy")
    if value is None:
        return "<td>&ndash;<small></small></td>"
    reference, small = number(summary.teacher, "accuracy"), ""
    images = number(summary.exported, "images")
    if row == FILE and images:
        # With fewer images than in the teacher's row, a difference would be mostly due to the samples.
        small = f"first {images:,.0f} images"
    elif row != "teacher" and reference is not None:
        small = summary.metric.difference(value, reference)
    return f"<td>{summary.metric.text(value, 2)}<small>{small}</small></td>"


def _cell(column: Column, row: str) -> str:
    value, reference = column.value(row), column.value("teacher")
    if value is None:
        return "<td>&ndash;<small></small></td>"
    relative = f"{value / reference:.2f}x" if reference and row != "teacher" else ""
    return f"<td>{column.text(value)}<small>{relative}</small></td>"


def _note(summary: Summary) -> str:
    exported = summary.exported
    if exported is None:
        return "<p class=note>Nothing was exported.</p>"
    words = [f"Exported file: {html.escape(Path(str(exported.get('path'))).name)}"]
    if (difference := number(exported, "max_abs_diff")) is not None:
        words.append(f"its outputs differ from PyTorch's by at most {difference:.2g}")
    if (latency := number(exported, "teacher_latency_ms")) is not None:
        size = number(exported, "teacher_size_bytes")
        has = f" has {size_text(size)} and" if size else ""
        words.append(f"the teacher's file{has} takes {latency_text(latency)}, timed in turns with it")
    if any(_timed(summary, name) for name in ("uniform", "allocate")):
        words.append("the baselines' latency is of their files before training, which takes as long")
    words.append("the packed file of the teacher is its .safetensors")
    return f"<p class=note>{'; '.join(words)}.</p>"


def _timed(summary: Summary, name: str) -> bool:
    record: Record | None = getattr(summary, name)
    return number(record, "latency_ms") is not None
