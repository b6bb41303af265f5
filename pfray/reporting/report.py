"""Report of a finished run: one page from ``summary.json`` and ``search/trials.jsonl``, readable without a network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.io
from plotly.offline import get_plotlyjs

from pfray.reporting import figures
from pfray.reporting.remarks import headline, remarks, score_text
from pfray.reporting.report_input import Record, number, read_trials
from pfray.reporting.summary import Summary
from pfray.reporting.template import PAGE
from pfray.storage.run_folder import RunFolder
from pfray.units import UNITS, latency_text, size_text
from pfray.utils.files import write_atomically

# Fields of a measurement in the final table.
COLUMNS = ("accuracy", "loss", "params", "nonzero_params", "macs", "size_bytes", "latency_ms")


def write(run_dir: Path) -> Path:
    """Write ``report.html`` into the folder of a run and return its path.

    Raises StorageError if the run's files are missing or damaged, or the report cannot be written.
    """
    run = RunFolder(run_dir)
    summary = Summary.read(run.summary)
    trials, unreadable = read_trials(run.trials)
    notes = remarks(summary)
    if unreadable:
        total = len(trials) + unreadable
        notes.append(f"{unreadable} of {total} lines of {run.trials.name} cannot be read and are left out")
    write_atomically(run.report, _page(summary, trials, notes))
    return run.report


def _page(summary: Summary, trials: Sequence[Record], notes: Sequence[str]) -> str:
    unit = next((unit for name, unit in UNITS.items() if name in summary.target), UNITS["params"])
    final = {name: getattr(summary, name) for name in figures.FINAL}
    counts, choice = summary.trials, summary.choice
    error = number(choice, "standard_error")
    facts = {
        "learner": summary.learner,
        "searcher": summary.searcher,
        "seed": summary.seed,
        "trials": f"{counts.get('finished', 0)} finished, {counts.get('failed', 0)} failed",
        "best trial": counts.get("best"),
        "score": summary.objective,
        "its standard error": None if error is None else f"{error:.2g}",
    }
    known = ((key, html.escape(str(value))) for key, value in facts.items() if value is not None)
    failed = [trial for trial in trials if number(trial, "score") is None]
    sections = [
        ("Result", "Measured on the test split, which the search never saw. Small print: relative to the teacher.",
         _table(summary)),
        ("Score by trial", "", draw(figures.scores(trials), "scores") + _origins(trials)),
        ("Accuracy against cost", "Trials are measured before the final retraining, and on the validation split.",
         draw(figures.accuracy_by_cost(trials, final, unit), "cost")),
        ("The plan", "The value chosen for each knob, beside the plan that treats all alike.",
         draw(figures.plan_bars(summary.plan, summary.uniform_plan), "plan")),
        ("Time", "", draw(figures.stage_bars(summary.seconds), "seconds")),
    ]  # fmt: skip
    if choice.get("rescored"):
        note = "The best trials, and the first, measured again on all validation images; the best of them was chosen."
        sections.insert(2, ("Chosen among the best", note, _rescored(choice["rescored"], trials)))
    if stored := (summary.exported or {}).get("stored"):
        note = "Weights as the .tflite has them: as the narrowest type that the runtime has kernels for."
        sections.insert(-1, ("Stored as", note, _stored(stored)))
    if failed:
        sections.append(("Failed trials", "", "".join(_failure(trial) for trial in failed)))
    body = "".join(
        f"<section><h2>{title}</h2>{f'<p class=note>{note}</p>' if note else ''}{content}</section>"
        for title, note, content in sections
    )
    parts = {
        "title": html.escape(f"{summary.experiment} - pfray"),
        "plotly": get_plotlyjs(),
        "headline": html.escape(headline(summary)),
        "remarks": "".join(f"<li>{html.escape(note)}</li>" for note in notes),
        "facts": "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in known),
        "body": body,
    }
    return PAGE.substitute(parts)


def draw(figure: Any, name: str) -> str:
    """HTML of a plotly figure without plotly.js. name: id of its element."""
    config = {"displayModeBar": False, "responsive": True}
    return plotly.io.to_html(figure, config, include_plotlyjs=False, full_html=False, div_id=name)


def _table(summary: Summary) -> str:
    """Numbers of teacher, baselines, compressed and exported model, each with its ratio to the teacher's."""
    teacher, exported = summary.teacher or {}, summary.exported
    rows = []
    for name in (*figures.FINAL, "exported"):
        record = getattr(summary, name)
        if record is None:
            continue
        cells = []
        for key in COLUMNS:
            value, reference = number(record, key), number(teacher, key)
            if name == "exported" and f"teacher_{key}" in record:
                # A file is compared with the teacher's file, which is made and timed the same way.
                reference = number(record, f"teacher_{key}")
            relative = "" if name == "teacher" else _relative(key, value, reference)
            if name == "exported" and key == "accuracy" and (images := number(record, "images")):
                # With fewer images than in the teacher's row, a difference would be mostly due to the samples.
                relative = f"first {images:,.0f} images"
            cells.append(f"<td>{_cell(key, value)}<small>{relative}</small></td>")
        rows.append(f"<tr><th scope=row>{name}</th>{''.join(cells)}</tr>")
    titles = [UNITS[key].noun if key in UNITS else key.replace("_", " ") for key in COLUMNS]
    head = "".join(f"<th scope=col>{title}</th>" for title in titles)
    body = f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<div class=scroll><table>{body}</table></div>{_export_note(exported)}"


def _origins(trials: Sequence[Record]) -> str:
    """Best score by origin of the plans: without a search, random or searched."""
    rows = []
    for origin in figures.origins(trials):
        scores = [s for t in trials if str(t.get("origin")) == origin and (s := number(t, "score")) is not None]
        if scores:
            rows.append([html.escape(origin), str(len(scores)), f"{max(scores):.4f}"])
    return _plain_table(["plans", "measured", "best score"], rows)


def _rescored(rescored: Sequence[Record], trials: Sequence[Record]) -> str:
    before = {trial["trial"]: number(trial, "score") for trial in trials}
    rows = []
    for record in rescored:
        score, error, first = number(record, "score"), number(record, "standard_error"), before.get(record["trial"])
        texts = ["" if value is None else f"{value:.4f}" for value in (score, error, first)]
        rows.append([_trial_text(record), *texts])
    return _plain_table(["trial", "score on all", "standard error", "score in the search"], rows)


def _stored(stored: Mapping[str, Record]) -> str:
    rows = []
    for name, record in stored.items():
        bits = number(record, "bits")
        cells = ["float" if bits is None else f"{bits:.0f}", str(record.get("type")), str(record.get("reason"))]
        rows.append([html.escape(name), *map(html.escape, cells)])
    return _plain_table(["layer", "bits", "in the .tflite", "how and why"], rows)


def _plain_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th scope=col>{title}</th>" for title in titles)
    body = "".join(f"<tr><th scope=row>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"
                   for first, *rest in rows)  # fmt: skip
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _export_note(exported: Record | None) -> str:
    if exported is None:
        return "<p class=note>Nothing was exported.</p>"
    words = [f"Exported file: {html.escape(Path(str(exported.get('path'))).name)}"]
    if (difference := number(exported, "max_abs_diff")) is not None:
        words.append(f"its outputs differ from PyTorch's by at most {difference:.2g}")
    if (latency := number(exported, "teacher_latency_ms")) is not None:
        size = number(exported, "teacher_size_bytes")
        has = f" has {size_text(size)} and" if size else ""
        words.append(f"the teacher's file{has} takes {latency_text(latency)}, timed in turns with it")
    return f"<p class=note>{'; '.join(words)}.</p>"


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "&ndash;"
    if key == "accuracy":
        return score_text(value, 2)
    return UNITS[key].text(value) if key in UNITS else f"{value:{'.4f' if key == 'loss' else ',.0f'}}"


def _relative(key: str, value: float | None, reference: float | None) -> str:
    if value is None or reference is None:
        return ""
    if key == "accuracy":
        return f"{100 * (value - reference):+.2f} points" if 0 <= value <= 1 else f"{value - reference:+.4g}"
    return f"{value / reference:.2f}x" if reference else ""


def _trial_text(trial: Record) -> str:
    return html.escape(f"{trial['trial']} ({trial.get('origin')})")


def _failure(trial: Record) -> str:
    plan = html.escape(json.dumps(trial.get("plan"), indent=1))
    error = html.escape(str(trial.get("error") or "no score and no error text"))
    return (f"<details open><summary>trial {_trial_text(trial)}</summary>"
            f"<pre>{error}</pre><details><summary>its plan</summary><pre>{plan}</pre></details></details>")
