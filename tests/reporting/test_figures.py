"""The figures of the report, by the values they draw."""

from __future__ import annotations

from typing import Any

from pfray.reporting import figures
from pfray.units import UNITS
from tests.summaries import SUMMARY, TRIALS, summary, trial


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
    figure = figures.accuracy_by_cost(TRIALS, final, UNITS["params"], summary())
    found = traces(figure)
    assert figure.layout.xaxis.title.text == "parameters that are not zero"
    assert found["searched (validation)"].x == (810_000,)
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
    (bars,) = figures.stage_bars(SUMMARY["seconds"], {}).data
    assert bars.y == ("data", "teacher", "search", "finalize", "export")
    assert bars.text[1] == "61.2 s"


def test_seconds_of_interrupted_attempts_are_bars_of_their_own() -> None:
    last, earlier = figures.stage_bars({"load": 5.0, "search": 90.0, "train": 10.0}, {"load": 2.0, "train": 10.0}).data
    assert (last.name, last.x) == ("last attempt", (2.0, 0.0, 10.0))
    assert (earlier.name, earlier.x) == ("interrupted attempts", (3.0, 90.0, 0.0))
    assert earlier.text == ("3.0 s", "90.0 s", "")


def test_a_latency_is_drawn_in_milliseconds_predicted_for_trials_and_measured_for_results() -> None:
    trials = [{**trial(0, "tpe", 0.9), "cost": {"latency_ms": 1.5, "macs": 5}}, {**trial(1, "tpe", 0.8), "cost": 7}]
    costs = {"teacher": {"latency_ms": 3.0}, "compressed": {"latency_ms": 1.4}, "uniform": {"macs": 5}}
    run = summary(costs=costs, target={"latency_ms": "0.5x"})
    figure = figures.accuracy_by_cost(trials, {name: SUMMARY[name] for name in costs}, UNITS["latency_ms"], run)
    found = traces(figure)
    assert figure.layout.xaxis.title.text == "latency (ms of the .tflite on one thread)"
    assert {name: trace.x for name, trace in found.items()} == {
        "tpe (validation)": (1.5,), "teacher (test)": (3.0,), "compressed (test)": (1.4,),
    }  # fmt: skip


def test_a_metric_where_lower_is_better_is_drawn_in_its_own_sign() -> None:
    run = summary(metric={"name": "mse", "higher_is_better": False, "is_share": False})
    figure = figures.accuracy_by_cost([trial(0, "tpe", -0.5)], {"teacher": {"accuracy": -0.25}}, UNITS["params"], run)
    assert figure.layout.yaxis.title.text == "mse (lower is better)"
    assert [trace.y for trace in figure.data] == [(0.5,), (0.25,)]


def test_plans_of_a_searcher_and_its_random_start_have_colours_of_their_own() -> None:
    styles = [figures.style(name) for name in ("gp", "gp, random start", "uniform", "warm start")]
    assert styles == [figures.ORIGINS["searched"], figures.ORIGINS["random"], figures.ORIGINS["uniform"], figures.OTHER]
