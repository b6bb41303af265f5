"""The figures of the report, by the values they draw."""

from __future__ import annotations

from typing import Any

from pfray.reporting import figures
from pfray.units import UNITS
from tests.summaries import SUMMARY, TRIALS


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_scores_are_coloured_by_origin_with_the_best_so_far_and_the_failed_ones() -> None:
    found = traces(figures.scores(TRIALS))
    assert set(found) == {"best so far", "uniform", "heuristic", "random", "searched", "failed"}
    assert found["best so far"].x == (0, 1, 3, 4)
    assert found["best so far"].y == (0.91, 0.93, 0.95, 0.95)
    assert found["searched"].x == (3,)
    assert found["failed"].x == (2,)
    colours = {found[name].marker.color for name in ("uniform", "heuristic", "random", "searched")}
    assert len(colours) == 4


def test_accuracy_by_cost_shows_trials_and_labels_the_results() -> None:
    final = {name: SUMMARY[name] for name in figures.FINAL}
    found = traces(figures.accuracy_by_cost(TRIALS, final, UNITS["params"]))
    assert found["searched (validation)"].x == (810_003,)
    assert found["teacher (test)"].x == (3_200_000,)
    assert found["compressed (test)"].y == (0.975,)
    assert [found[f"{name} (test)"].text for name in figures.FINAL] == [(name,) for name in figures.FINAL]
    assert len({found[f"{name} (test)"].marker.color for name in figures.FINAL}) == 4


def test_every_knob_has_the_chosen_and_the_uniform_value_side_by_side() -> None:
    found = traces(figures.plan_bars({"a": 0.5, "b": True}, {"a": 0.75, "b": False}))
    assert found["chosen"].y == ("a", "b")
    assert found["chosen"].x == (0.5, 1.0)
    assert found["uniform"].x == (0.75, 0.0)


def test_stages_keep_their_order() -> None:
    (bars,) = figures.stage_bars(SUMMARY["seconds"]).data
    assert bars.y == ("data", "teacher", "search", "finalize", "export")
    assert bars.text[1] == "61.2 s"
