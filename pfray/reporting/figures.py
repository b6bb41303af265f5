"""Figures of the report: plain data in, plotly figures out."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from plotly import graph_objects as go

from pfray.reporting.report_input import Record, number
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


def scores(trials: Sequence[Record]) -> go.Figure:
    """Score by trial: a colour for each origin, the best so far as a line, failed trials as crosses at the bottom."""
    done = [(trial["trial"], score) for trial in trials if (score := number(trial, "score")) is not None]
    figure = _figure("trial", "score", height=400)
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
        colour, symbol = ORIGINS.get(origin, OTHER)
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


def accuracy_by_cost(trials: Sequence[Record], final: Mapping[str, Record | None], unit: Unit) -> go.Figure:
    """Accuracy by cost: every trial (validation split), and the final measurements (test split) as labelled marks.

    final: measurements by name. unit: its field of a measurement is on the horizontal axis.
    """
    figure, cost = _figure(unit.title, "accuracy", height=440), unit.field
    for origin in origins(trials):
        points = [_point(t.get("measurement"), cost) for t in trials if t.get("origin") == origin]
        shown = [(t["trial"], *p) for t, p in zip((t for t in trials if t.get("origin") == origin), points, strict=True)
                 if p is not None]  # fmt: skip
        if not shown:
            continue
        colour, symbol = ORIGINS.get(origin, OTHER)
        figure.add_scatter(
            x=[x for _, x, _ in shown], y=[y for _, _, y in shown], mode="markers",
            name=f"{html.escape(origin)} (validation)", customdata=[trial for trial, _, _ in shown],
            marker={"color": colour, "symbol": symbol, "size": 8, "opacity": 0.55},
            hovertemplate="trial %{customdata}: %{y:.4f} at %{x:,}<extra></extra>",
        )  # fmt: skip
    for name, (colour, symbol) in FINAL.items():
        point = _point(final.get(name), cost)
        if point is not None:
            figure.add_scatter(
                x=[point[0]], y=[point[1]], mode="markers+text", name=f"{name} (test)", text=[name],
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


def stage_bars(seconds: Record) -> go.Figure:
    """Seconds of each stage of the run, in order."""
    stages = [stage for stage in seconds if number(seconds, stage) is not None]
    values = [number(seconds, stage) or 0.0 for stage in stages]
    figure = _figure("seconds", "", height=80 + 34 * len(stages))
    figure.add_bar(
        x=values, y=[html.escape(stage) for stage in stages], orientation="h", marker={"color": "#0d9488"},
        text=[f"{value:,.1f} s" for value in values], textposition="auto", cliponaxis=False, hoverinfo="skip",
    )  # fmt: skip
    figure.update_layout(showlegend=False, margin={"t": 8})
    figure.update_yaxes(autorange="reversed", type="category", ticksuffix="  ")
    return figure


def _point(measurement: Record | None, cost: str) -> tuple[float, float] | None:
    x, y = number(measurement, cost), number(measurement, "accuracy")
    return None if x is None or y is None else (x, y)


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
