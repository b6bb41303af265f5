"""Milliseconds as a target: the prediction by hand, and a run that keeps it. Times are those of a clock of ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch import nn

from learners.channel_pruned import ChannelPruned
from learners.channel_pruned import Settings as PruningSettings
from learners.weight_sparse import WeightSparse
from pfray import bench
from pfray.config.registry import parse_settings
from pfray.config.schema import load
from pfray.errors import ConfigError, InfeasibleTarget
from pfray.export.tflite import convert
from pfray.learner.base import Algorithm, Compressed
from pfray.learner.context import Context
from pfray.learner.pipeline import Pipeline
from pfray.learner.pipeline import Settings as PipelineSettings
from pfray.run import main, run
from pfray.space import CompressionSpace, Knob, Plan
from pfray.units import Amount
from pfray.utils.cache import cache_dir
from pfray.workflow import latency_model, meet_latency
from pfray.workflow.latency_model import PredictedCosts, timed_space
from pfray.workflow.meet_latency import TimedPlan
from pfray.workflow.target import costs_as_it_is

SETTINGS = PruningSettings(images=100, round_to=1)
HALF = Amount.parse("0.5x")


@pytest.fixture(autouse=True, scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    """A file takes a millisecond for every 100 kB; how many files were timed at once. The times are kept here only."""
    counts: list[int] = []

    def round_times_ms(paths: Sequence[Path], rounds: int = 15, threads: int = 1, example: Any = None) -> np.ndarray:
        counts.append(len(paths))
        return np.array([[Path(path).stat().st_size / 1e5] * rounds for path in paths])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "round_times_ms", round_times_ms)
        patch.setenv("PFRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield counts


def timed(
    context: Context, learner: type[Algorithm], settings: Any, done: Callable[[int, str], None] | None = None
) -> CompressionSpace:
    algorithm = learner(context.teacher, context.task, settings)
    return timed_space(algorithm.space(), algorithm, HALF, done or (lambda count, note: None))


@pytest.fixture(scope="module")
def first(context: Context, clock: list[int]) -> tuple[CompressionSpace, list[int], list[int]]:
    """The space of a LeNet that is timed for the first time, the counts that were shown, the files timed at once."""
    shown: list[int] = []
    before = len(clock)
    space = timed(context, ChannelPruned, SETTINGS, lambda count, note: shown.append(count))
    return space, shown, clock[before:]


def test_the_prediction_is_linear_in_the_multiply_adds_between_the_plans_that_were_timed(first):
    space, shown, _ = first
    assert shown == list(range(1, len(shown) + 1))
    assert 3 <= len(shown) <= latency_model.file_count(space) == 4
    macs, times = space.costs_of.curves["float"]
    ends = [space.costs_at(np.full(len(space), position)) for position in (0.0, 1.0)]
    assert [end["macs"] for end in ends] == [macs[0], macs[-1]]
    assert [end["latency_ms"] for end in ends] == [times[0], times[-1]]
    assert times == sorted(times)
    assert times[-1] > 2 * times[0] > 0
    between = space.costs_at(np.full(len(space), 0.8))
    index = np.searchsorted(macs, between["macs"])
    share = (between["macs"] - macs[index - 1]) / (macs[index] - macs[index - 1])
    assert between["latency_ms"] == pytest.approx((1 - share) * times[index - 1] + share * times[index])


def test_uniform_plans_are_timed_until_one_just_meets_the_limit(first):
    space, _, _ = first
    wanted = 0.5 * space.costs_of.teacher_ms
    nearest = min(space.costs_of.curves["float"][1], key=lambda found: abs(found - wanted))
    assert nearest == pytest.approx(wanted, rel=0.15)


def test_plans_are_timed_once_and_kept_and_the_whole_network_is_the_teachers_file(context, first, clock):
    space, _, at_once = first
    assert at_once == [1] + [2] * (len(space.costs_of.curves["float"][0]) - 1)
    assert space.costs_of.teacher_ms == space.costs_at(np.ones(len(space)))["latency_ms"]
    before, files = list(clock), len(list(cache_dir().glob("tflite/*.tflite")))
    again = timed(context, ChannelPruned, SETTINGS)
    assert clock == before
    assert len(list(cache_dir().glob("tflite/*.tflite"))) == files == 1
    assert space.costs_at(np.ones(len(space))) == again.costs_at(np.ones(len(again)))


def test_a_slower_file_of_fewer_multiply_adds_does_not_make_compression_cost_more():
    assert latency_model.rising_curve([30, 10, 20], [3.0, 1.5, 1.0]) == [[10, 20, 30], [1.5, 1.5, 3.0]]


@pytest.mark.parametrize(("bits", "expected"), [(8, 1.0), (32, 4.0), (20, 2.5)])
def test_switches_to_8_bits_count_by_the_mean_bits(bits, expected):
    curves = {"float": [[0, 100], [0.0, 8.0]], "int8": [[0, 100], [0.0, 2.0]]}
    costs = PredictedCosts(lambda values: {"macs": 50, "bits": float(values[0])}, curves, (8, 32), 8.0)
    assert costs(np.array([bits]))["latency_ms"] == pytest.approx(expected)


def test_8_bits_that_are_slower_are_no_reason_to_use_more_of_them():
    curves = {"float": [[0, 100], [1.0, 1.0]], "int8": [[0, 100], [2.0, 2.0]]}
    cost = PredictedCosts(lambda values: {"macs": 50, "bits": float(values[0])}, curves, (8, 32), 1.0)
    assert cost(np.array([8.0]))["latency_ms"] == cost(np.array([32.0]))["latency_ms"] == 2.0


@pytest.mark.parametrize(
    ("macs", "kept", "expected"),
    [
        (50, 1.0, 6.0),  # on the curve of all layers
        (50, 0.0, 3.0),  # on the curve without the layers
        (50, 0.5, 4.5),
        (90, 0.0, 5.9),  # the curve without them ends at 60: the gap of 3.3 there stays
        (5, 0.0, 1.0),  # the narrowest of all
    ],
)
def test_at_equal_multiply_adds_fewer_layers_are_faster(macs, kept, expected):
    curves = {"float": [[0, 100], [2.0, 10.0]], "float, fewer layers": [[10, 60], [1.0, 3.5]]}
    costs = PredictedCosts(lambda _: {"macs": macs}, curves, (0, 0), 10.0, lambda values: values[0])
    assert costs(np.array([kept]))["latency_ms"] == pytest.approx(expected)


def test_the_layers_of_a_removed_block_are_out_with_it():
    values = np.array([0.0, 1.0, 1.0, 1.0, 0.3])
    assert latency_model.layers_left(values, layers=[0, 1, 2, 3], inside={0: {1}}) == 0.5
    assert latency_model.layers_left(np.ones(5), layers=[0, 1, 2, 3], inside={0: {1}}) == 1


def test_each_curve_keeps_its_switches_and_its_layers():
    knobs = (
        Knob("a", 0.0, 1.0, choices=(0.0, 1.0), kind="layer"), Knob("b", 0.1, 1.0, kind="keep_ratio"),
        Knob("c", 8, 32, choices=(8, 32), kind="int8_switch"),
    )  # fmt: skip
    space = CompressionSpace(knobs, lambda values: {"macs": 1.0, "bits": float(values[2])})
    assert {name: [end.tolist() for end in ends] for name, ends in latency_model._ends(space).items()} == {
        "float": [[1, 1, 1], [1, 0, 1]], "float, fewer layers": [[0, 1, 1], [0, 0, 1]],
        "int8": [[1, 1, 0], [1, 0, 0]], "int8, fewer layers": [[0, 1, 0], [0, 0, 0]],
    }  # fmt: skip
    assert latency_model.file_count(space) == 10


def test_a_pipeline_switches_8_bits_on_for_a_latency(context):
    steps = [{"name": "channel_pruned", "images": 100, "round_to": 1}, {"name": "litert_quant", "images": 100}]
    settings = parse_settings("learner", PipelineSettings, {"steps": steps})
    space = timed(context, Pipeline, settings)
    whole = space.costs_at(np.ones(len(space)))["latency_ms"]
    eight = space.uniform({"latency_ms": 0.5 * whole})
    # The int8 file is a third of the float one, so that nothing has to be pruned.
    assert {value for name, value in eight.items() if name.startswith("litert_quant:")} == {8}
    assert {value for name, value in eight.items() if name.startswith("channel_pruned:")} == {1}
    pruned = space.uniform({"latency_ms": 0.2 * whole})
    assert space.costs(pruned)["latency_ms"] <= 0.2 * whole
    assert space.costs(pruned)["macs"] < 0.8 * space.costs(eight)["macs"]


def test_a_learner_that_changes_no_multiply_adds_offers_no_latency(context):
    space = timed(context, WeightSparse, WeightSparse.settings_type())
    assert "latency_ms" not in space.costs_at(np.ones(len(space)))


def test_a_space_without_switches_has_one_curve():
    knobs = (Knob("a", 0.0, 1.0), Knob("b", 8, 32, choices=(8, 32), kind="int8_switch"))
    assert latency_model.file_count(CompressionSpace(knobs[:1], lambda values: {"bits": 32.0})) == 4
    assert latency_model.file_count(CompressionSpace(knobs, lambda values: {"bits": 20.0})) == 6
    assert latency_model.file_count(CompressionSpace(knobs, lambda values: {"macs": 1.0})) == 4


def experiment(folder: Path, teacher_file: Path, **changes: Any) -> Path:
    raw: dict[str, Any] = {
        "name": "faster", "storage": str(folder), "data": "digits",
        "model": {"name": "lenet", "weights": str(teacher_file)},
        "learner": {"name": "channel_pruned", "images": 100, "round_to": 1}, "target": {"latency_ms": "0.5x"},
        "search": {"name": "uniform"}, "finetune": {"epochs": 0}, "export": {"images": 50, "rounds": 3}, **changes,
    }  # fmt: skip
    path = folder / "faster.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_a_run_keeps_a_latency_and_is_continued_with_the_same_plans(
    ray_cluster, tmp_path, teacher_file, clock, capsys, monkeypatch
):
    path = experiment(tmp_path, teacher_file)
    converted: list[nn.Module] = []
    convert_one = convert.convert
    monkeypatch.setattr(convert, "convert", lambda model, *rest: converted.append(model) or convert_one(model, *rest))
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "cache"))
    folder = run(load(path))
    first, timings = json.loads((folder / "summary.json").read_text()), len(clock)
    assert first["target"] == {"latency_ms": "0.5x"}
    assert first["limits"] == {"latency_ms": 0.5 * first["exported"]["teacher_latency_ms"]}
    assert 0.4 < first["exported"]["latency_ms"] / first["exported"]["teacher_latency_ms"] <= 0.51
    printed = capsys.readouterr().out
    assert "at most 0.5x latency: " in printed
    assert "[latency curve] " in printed
    assert "[meet latency] " in printed
    # The teacher once, two or three files more for the curve, one to three for each of two plans, and the result.
    assert 6 <= len(converted) <= 11
    sizes = [sum(p.numel() for p in model.parameters()) for model in converted]
    assert sizes.count(max(sizes)) == 1
    assert (folder / "teacher.tflite").stat().st_size / 1e5 == first["exported"]["teacher_latency_ms"]
    teacher = first["costs"]["teacher"]["latency_ms"]
    assert first["uniform"]["latency_ms"] == first["costs"]["uniform"]["latency_ms"] <= 0.51 * teacher
    # Uniform is the chosen plan, and allocate may be: of equal plans one is trained.
    assert first["shared"]["uniform"] == "compressed"
    assert first["trials"]["finished"] == 1

    (folder / "summary.json").unlink()
    again = json.loads((run(load(path), resume=True) / "summary.json").read_text())
    assert again["plan"] == first["plan"]
    assert len(clock) == timings + 1  # of the exported files


def test_a_file_that_is_slower_than_predicted_misses_the_goal(ray_cluster, tmp_path, teacher_file, monkeypatch, capsys):
    path = experiment(tmp_path, teacher_file)
    as_they_are = lambda plans, *rest: {name: TimedPlan(plan, 0.5) for name, plan in plans.items()}  # noqa: E731
    monkeypatch.setattr(meet_latency, "meet_latency", as_they_are)  # no further compression
    share = latency_model.time_share
    monkeypatch.setattr(latency_model, "time_share", lambda *plan: share(*plan) ** 2)  # files seem faster than they are
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "cache"))
    assert main([str(path)]) == 1
    found = capsys.readouterr()
    assert "target.latency_ms allows" in found.err
    assert "The files are complete" in found.err
    assert "allowed (target.latency_ms)" in found.out
    assert (tmp_path / "faster" / "model.tflite").exists()


class TwoWidths(Algorithm):
    """A user's algorithm: a hidden layer of 16 or 32 outputs."""

    def space(self) -> CompressionSpace:
        knobs = (Knob("hidden", 16, 32, choices=(16, 32)),)
        return CompressionSpace(knobs, lambda values: {"macs": 1034.0 * float(values[0])})

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        hidden = int(plan["hidden"])
        return Compressed(nn.Sequential(nn.Flatten(), nn.Linear(1024, hidden), nn.Linear(hidden, 10)))


def test_a_knob_of_two_large_values_is_no_switch_to_8_bits(context):
    assert latency_model.file_count(TwoWidths(context.teacher, context.task).space()) == 4
    space = timed(context, TwoWidths, TwoWidths.settings_type())
    narrow, wide = space.costs({"hidden": 16}), space.costs({"hidden": 32})
    teacher = space.costs_of.teacher_ms
    assert len({narrow["latency_ms"], wide["latency_ms"], teacher}) == 3
    assert costs_as_it_is(space, context.teacher)["latency_ms"] == teacher
    assert narrow["macs"] == 0.5 * wide["macs"]
    assert narrow["latency_ms"] < wide["latency_ms"]
    assert space.uniform({"latency_ms": 0.99 * wide["latency_ms"]}) == {"hidden": 16}
    assert space.uniform({"latency_ms": wide["latency_ms"]}) == {"hidden": 32}

def test_wrong_latencies_are_refused(tmp_path, teacher_file):
    with pytest.raises(InfeasibleTarget, match=r"target\.latency_ms: .* out of reach"):
        run(load(experiment(tmp_path, teacher_file, target={"latency_ms": 1e-6})))
    with pytest.raises(ConfigError, match=r"target\.latency_ms: weight_sparse cannot change it"):
        run(load(experiment(tmp_path, teacher_file, learner="weight_sparse")))
    with pytest.raises(ConfigError, match=r"target\.latency_ms is the \.tflite's, and export\.tflite is false"):
        load(experiment(tmp_path, teacher_file, export={"tflite": False}))
