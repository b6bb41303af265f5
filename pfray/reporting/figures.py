"""Figures of the report: plain data in, plotly figures out."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from plotly import graph_objects as go

from pfray.reporting.report_input import Record, number
from pfray.reporting.summary import Summary
from pfray.search._trial_log import RANDOM_START
from pfray.units import Unit

# Colour and symbol by origin. The colours are legible on white and on near-black.
ORIGINS = {
    "allocate": ("#7c3aed", "hexagon"),
    "uniform": ("#d97706", "square"),
    "heuristic": ("#0d9488", "diamond"),
    "random": ("#8b93a1", "circle"),
    "searched": ("#3b82f6", "circle"),
}
OTHER = ("#a16207", "triangle-up")
FINAL = {
    "teacher": ("#a855f7", "pentagon"),
    "uniform": ("#d97706", "square"),
    "allocate": ("#7c3aed", "hexagon"),
    "compressed": ("#e11d48", "star"),
}
FAILED = "#e11d48"


def scores(trials: Sequence[Record], title: str = "score") -> go.Figure:
    """Score by trial: a colour for each origin, the best so far as a line, failed trials as crosses at the bottom.

    title: of the score.
    """
    done = [(trial["trial"], score) for trial in trials if (score := number(trial, "score")) is not None]
    figure = _figure("trial", html.escape(title), height=400)
    best, steps = -math.inf, []
    for _, score in done:
        best = max(best, score)
        steps.append(best)
    figure.add_scatter(
        x=[trial for trial, _ in done], y=steps, mode="lines", name="best so far",
        line={"shape": "hv", "width": 2, "color": "#64748b"}, hoverinfo="skip",
    )  # fmt: skip
    for origin in origins(trials):
        points = [t for t in trials if t.get("origin") == origin and number(t, "score") is not None]
        colour, symbol = style(origin)
        figure.add_scatter(
            x=[t["trial"] for t in points], y=[number(t, "score") for t in points], mode="markers",
            name=html.escape(origin),
            marker={"color": colour, "symbol": symbol, "size": 9},
            hovertemplate="trial %{x}: %{y:.4f}<extra>" + html.escape(origin) + "</extra>",
        )  # fmt: skip
    failed = [t["trial"] for t in trials if number(t, "score") is None]
    if failed:
        foot = min((score for _, score in done), default=0.0)
        figure.add_scatter(
            x=failed, y=[foot] * len(failed), mode="markers", name="failed",
            marker={"color": FAILED, "symbol": "x", "size": 10}, hovertemplate="trial %{x} failed<extra></extra>",
        )  # fmt: skip
    return figure


def accuracy_by_cost(
    trials: Sequence[Record], final: Mapping[str, Record | None], unit: Unit, summary: Summary
) -> go.Figure:
    """The metric by cost: every trial (validation split), and the final measurements (test split) as labelled marks.

    final: measurements by name. unit: of the horizontal axis; a trial's is that of its plan, which for a latency is
    predicted.
    """
    figure, metric = _figure(unit.title, html.escape(summary.metric.title), height=440), summary.metric
    for origin in origins(trials):
        own = [t for t in trials if t.get("origin") == origin]
        points = [(number(_mapping(t.get("cost")), unit.name), number(t.get("measurement"), "accuracy")) for t in own]
        shown = [(t["trial"], x, metric.value(y)) for t, (x, y) in zip(own, points, strict=True)
                 if x is not None and y is not None]  # fmt: skip
        if not shown:
            continue
        colour, symbol = style(origin)
        figure.add_scatter(
            x=[x for _, x, _ in shown], y=[y for _, _, y in shown], mode="markers",
            name=f"{html.escape(origin)} (validation)", customdata=[trial for trial, _, _ in shown],
            marker={"color": colour, "symbol": symbol, "size": 8, "opacity": 0.55},
            hovertemplate="trial %{customdata}: %{y:.4f} at %{x:,}<extra></extra>",
        )  # fmt: skip
    for name, (colour, symbol) in FINAL.items():
        x, y = summary.cost(name, unit.name), number(final.get(name), "accuracy")
        if x is not None and y is not None:
            figure.add_scatter(
                x=[x], y=[metric.value(y)], mode="markers+text", name=f"{name} ({summary.measured_on})", text=[name],
                textposition="bottom center" if name == "uniform" else "top center", cliponaxis=False,
                marker={"color": colour, "symbol": symbol, "size": 16, "line": {"width": 1.5, "color": "#ffffff"}},
                hovertemplate=name + ": %{y:.4f} at %{x:,}<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(rangemode="tozero")
    return figure


def plan_bars(plan: Record, uniform: Record) -> go.Figure:
    """Chosen and uniform value of each knob, first knob on top."""
    knobs = list(plan)
    figure = _figure("value", "", height=140 + 30 * len(knobs))
    for values, name, colour in ((plan, "chosen", "#3b82f6"), (uniform, "uniform", "#d97706")):
        figure.add_bar(
            x=[number(values, knob) for knob in knobs], y=[html.escape(knob) for knob in knobs], orientation="h",
            name=name, marker={"color": colour}, hovertemplate="%{y}: %{x:.4g}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(autorange="reversed", type="category", dtick=1, ticksuffix="  ")
    return figure


def stage_bars(seconds: Record, own: Record) -> go.Figure:
    """Seconds of each stage of the run, in order: of the last attempt, and of earlier ones that were interrupted.

    seconds: of all attempts. own: of the last; empty if it is the only one that is known.
    """
    stages = [stage for stage in seconds if number(seconds, stage) is not None]
    totals = [number(seconds, stage) or 0.0 for stage in stages]
    last = [number(own, stage) or 0.0 if own else total for stage, total in zip(stages, totals, strict=True)]
    earlier = [max(0.0, total - value) for total, value in zip(totals, last, strict=True)]
    several = sum(earlier) > 0.05
    figure = _figure("seconds", "", height=80 + 34 * len(stages))
    bars = [("last attempt", last, "#0d9488"), *([("interrupted attempts", earlier, "#8b93a1")] if several else [])]
    for name, values, colour in bars:
        figure.add_bar(
            x=values, y=[html.escape(stage) for stage in stages], orientation="h", marker={"color": colour}, name=name,
            text=[f"{value:,.1f} s" if value or not several else "" for value in values], textposition="auto",
            cliponaxis=False, hoverinfo="skip",
        )  # fmt: skip
    figure.update_layout(showlegend=several, barmode="stack", margin={"t": 32 if several else 8})
    figure.update_yaxes(autorange="reversed", type="category", ticksuffix="  ")
    return figure


def style(origin: str) -> tuple[str, str]:
    """Colour and symbol of plans of an origin; those of a searcher, whatever its name, are ``searched``."""
    if origin.endswith(RANDOM_START):
        return ORIGINS["random"]
    return ORIGINS.get(origin, OTHER if origin in ("given", "warm start") else ORIGINS["searched"])


def _mapping(value: Any) -> Record | None:
    return value if isinstance(value, Mapping) else None


def origins(trials: Sequence[Record]) -> list[str]:
    """Origins of the trials, the known ones first."""
    found = {str(trial.get("origin")) for trial in trials}
    return [*(name for name in ORIGINS if name in found), *sorted(found - set(ORIGINS))]


def _figure(x: str, y: str, height: int) -> go.Figure:
    axis = {"gridcolor": "rgba(128,136,150,0.25)", "zerolinecolor": "rgba(128,136,150,0.5)", "automargin": True}
    return go.Figure(
        layout={
            "template": "none",
            "height": height,
            "margin": {"l": 48, "r": 16, "t": 40, "b": 44},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": "#808896", "family": "system-ui, sans-serif", "size": 13},
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
            "xaxis": {**axis, "title": {"text": x}},
            "yaxis": {**axis, "title": {"text": y}},
            "dragmode": False,
        }
    )
