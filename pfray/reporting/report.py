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
from pfray.reporting.remarks import chosen_text, headline, remarks, time_text
from pfray.reporting.report_input import Record, number, read_trials
from pfray.reporting.summary import MODELS, Summary
from pfray.reporting.table import results_table
from pfray.reporting.template import PAGE
from pfray.storage.run_folder import RunFolder
from pfray.units import UNITS
from pfray.utils.files import write_atomically

# What the results are measured on, by split.
_MEASURED = {
    "test": "Measured on the test split, which the search never saw.",
    "validation": "Measured on the validation split, which the search has seen, because there is no test split.",
}
# The score of a trial in words, by objective. A is the task's metric.
SCORES = {
    "agreement": "minus the KL divergence of the model's predictions from the teacher's on validation images, in nats "
    "(or minus the task's own soft loss); 0 is the best",
    "accuracy": "A on validation images",
    "accuracy_and_cost": "A x log(1 + r), r the saved share of the cost",
    "amc": "-(1 - A) x log(cost)",
    "ddc": "product of three sigmoids over A, the latency and the parameters left, 0 to 1",
    "n2n": "r (2 - r) x A over the teacher's, r the saved share of the cost",
}


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
    unit = next(iter(summary.units), UNITS["params"])
    final = {name: getattr(summary, name) for name in MODELS}
    counts, choice = summary.trials, summary.choice
    error = number(choice, "standard_error")
    facts = {
        "learner": summary.learner,
        "searcher": summary.searcher,
        "seed": summary.seed,
        "trials": f"{counts.get('finished', 0)} finished, {counts.get('failed', 0)} failed",
        "chosen": chosen_text(summary),
        "score": _score_text(summary),
        "its standard error": None if error is None else f"{error:.2g}",
    }
    known = ((key, html.escape(str(value))) for key, value in facts.items() if value is not None)
    failed = [trial for trial in trials if number(trial, "score") is None]
    sections = [
        ("Result", _MEASURED[summary.measured_on] + " Small print: relative to the teacher.",
         results_table(summary)),
        ("Score by trial", _score_note(summary),
         draw(figures.scores(trials, _score_name(summary)), "scores") + _origins(trials)),
        (f"Cost and {html.escape(summary.metric.name)}", _cost_note(unit.name),
         draw(figures.accuracy_by_cost(trials, final, unit, summary), "cost")),
        ("The plan", "The value chosen for each knob, beside the plan that treats all alike.",
         draw(figures.plan_bars(summary.plan, summary.uniform_plan), "plan")),
        ("Time", time_text(summary), draw(figures.stage_bars(summary.seconds, summary.own_seconds), "seconds")),
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


def _score_name(summary: Summary) -> str:
    """Label of the score's axis."""
    return "agreement (nats)" if summary.objective == "agreement" else summary.objective or "score"


def _score_text(summary: Summary) -> str | None:
    """The chosen trial's score, with its name."""
    score, name, metric = number(summary.choice, "score"), summary.objective, summary.metric
    if score is not None and name == "accuracy":
        return f"{metric.name} {metric.text(score, 2)}"
    return name if score is None or name is None else f"{name} {score:.4g}"


def _score_note(summary: Summary) -> str:
    """Explanation of the score; empty for an unknown one."""
    what = SCORES.get(summary.objective or "")
    if what is None:
        return ""
    metric = summary.metric
    legend = f" (A: {'' if metric.higher_is_better else 'minus the '}{metric.name})" if "A " in what else ""
    return html.escape(f"Score, {summary.objective}: {what}{legend}. Higher is better.")


def _cost_note(unit: str) -> str:
    """Explanation of the trials' points."""
    predicted = "; their latency is predicted from their MACs" if unit == "latency_ms" else ""
    return f"Trials are measured before the final retraining, and on the validation split{predicted}."


def draw(figure: Any, name: str) -> str:
    """HTML of a plotly figure without plotly.js. name: id of its element."""
    config = {"displayModeBar": False, "responsive": True}
    return plotly.io.to_html(figure, config, include_plotlyjs=False, full_html=False, div_id=name)


def _origins(trials: Sequence[Record]) -> str:
    """Best score by origin of the plans: without a search, the searcher's random start, or its own."""
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


def _trial_text(trial: Record) -> str:
    return html.escape(f"{trial['trial']} ({trial.get('origin')})")


def _failure(trial: Record) -> str:
    plan = html.escape(json.dumps(trial.get("plan"), indent=1))
    error = html.escape(str(trial.get("error") or "no score and no error text"))
    return (f"<details open><summary>trial {_trial_text(trial)}</summary>"
            f"<pre>{error}</pre><details><summary>its plan</summary><pre>{plan}</pre></details></details>")
