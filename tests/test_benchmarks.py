from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import __main__ as every
from benchmarks import (
    device_check,
    kills,
    lasso_path,
    layer_removal,
    policy_transfer,
    result,
    reward_fidelity,
    search_overhead,
    search_quality,
    sparse_accuracy,
    synthetic,
    variants,
    weak_scaling,
    workers,
)
from pfray.errors import UnsupportedModel

ROOT = Path(__file__).resolve().parents[1]
SHARED = (
    "__init__", "raylets", "removal_search", "result", "searching", "sleeping", "sleeping_trial", "sparse_resnet",
    "synthetic", "variants", "workers",
)  # fmt: skip
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in SHARED)


def trial(finished_at: float, seconds: float | None) -> dict[str, Any]:
    return {"finished_at": finished_at if seconds is not None else None, "seconds": seconds}


def write_run(folder: Path, seed: int, uniform: float, compressed: float, best: int) -> Path:
    """The part of a run folder that the table is made from."""
    (folder / "search").mkdir(parents=True)
    accuracies = {"teacher": 0.9, "uniform": uniform, "compressed": compressed}
    summary = {"seed": seed, "trials": {"finished": 3, "failed": 0, "best": best}}
    summary |= {name: {"accuracy": accuracy, "loss": 1.0} for name, accuracy in accuracies.items()}
    (folder / "summary.json").write_text(json.dumps(summary))
    # In the order in which they finished, which is not that of their numbers.
    lines = [{"trial": number, "origin": origin} for number, origin in ((1, "heuristic"), (0, "uniform"), (2, "tpe"))]
    (folder / "search" / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def closing(output: str) -> dict[str, Any]:
    return json.loads(output.splitlines()[-1])


def test_workers_that_never_wait_have_no_overhead():
    trials = [trial(12.0, 2.0), trial(12.0, 2.0), trial(14.0, 2.0), trial(14.0, 2.0)]
    assert search_overhead.overhead(trials, parallel=2) == pytest.approx(1.0)


def test_waiting_between_trials_and_a_worker_that_starts_late_are_overhead():
    # Worker 1: 10..12 and 13..15, one second apart. Worker 2: 11..13 and 14..16. 6 s for 8 s of computing on two.
    trials = [trial(12.0, 2.0), trial(15.0, 2.0), trial(13.0, 2.0), trial(16.0, 2.0)]
    assert search_overhead.first_start(trials) == 10.0
    assert search_overhead.overhead(trials, parallel=2) == pytest.approx(1.5)
    assert search_overhead.overhead(trials, parallel=1) == pytest.approx(0.75)


def test_a_trial_without_a_result_is_left_out_of_the_computing():
    trials = [trial(12.0, 2.0), trial(0.0, None), trial(16.0, 2.0)]
    assert search_overhead.overhead(trials, parallel=1) == pytest.approx(6 / 4)


def test_the_start_is_cut_into_parts_that_add_up():
    seen = {"load": 103.0, "start ray": 105.0, "search": 109.0}
    parts = search_overhead.start_breakdown(100.0, seen, 116.0)
    assert [seconds for _, seconds in parts] == [3.0, 2.0, 4.0, 7.0]


def test_the_table_gives_mean_and_spread_over_seeds(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", 0, 0.80, 0.82, best=2), write_run(tmp_path / "b", 1, 0.81, 0.82, best=1)]
    assert sparse_accuracy.main([str(run) for run in runs]) == 0
    output = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line[0] == "|"]
    assert rows[2] == ["0", "90.00", "80.00", "82.00", "+2.00", "3", "tpe"]
    assert rows[3] == ["1", "90.00", "81.00", "82.00", "+1.00", "3", "heuristic"]
    assert rows[4][:5] == ["mean", "90.00", "80.50", "82.00", "+1.50"]
    assert rows[5][:5] == ["min .. max", "90.00 .. 90.00", "80.00 .. 81.00", "82.00 .. 82.00", "+1.00 .. +2.00"]
    assert {len(row) for row in rows} == {7}
    line = closing(output)
    assert line["value"] == pytest.approx(1.5)
    assert line["ok"] is True


def test_a_searched_plan_that_is_no_better_misses_the_goal(tmp_path, capsys):
    assert sparse_accuracy.main([str(write_run(tmp_path / "a", 0, 0.8, 0.8, best=0))]) == 0
    assert closing(capsys.readouterr().out)["ok"] is False


def test_run_leaves_finished_runs_alone_and_resumes_the_others(tmp_path, monkeypatch):
    write_run(tmp_path / "resnet20_sparse_seed0", 0, 0.80, 0.82, best=2)
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **settings: commands.append(command))
    folders = sparse_accuracy.run_seeds(sparse_accuracy.EXPERIMENT, [0, 5], tmp_path, ["search.trials=3"])
    assert [folder.name for folder in folders] == ["resnet20_sparse_seed0", "resnet20_sparse_seed5"]
    assert len(commands) == 1
    assert {"seed=5", "name=resnet20_sparse_seed5", "search.trials=3", "--resume"} <= set(commands[0])


@pytest.mark.parametrize("benchmark", [sparse_accuracy, search_overhead], ids=lambda module: module.NAME)
def test_missing_data_is_one_line_and_no_failure(benchmark, tmp_path, capsys):
    nowhere = str(tmp_path / "nowhere")
    arguments = [nowhere] if benchmark is sparse_accuracy else ["--data", nowhere]
    assert benchmark.main(arguments) == result.SKIPPED
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert nowhere in output
    assert "Remedy" in output


def test_the_closing_line_compares_with_the_goal(capsys):
    cases = ((1.2, "<= 1.25", True), (1.3, "<= 1.25", False), (0.0, "> 0", False), (0.9, ">= 0.95", False))
    for value, goal, ok in cases:
        result.close("x", value, "unit", goal)
        assert closing(capsys.readouterr().out) == {"name": "x", "value": value, "unit": "unit", "goal": goal, "ok": ok}


def test_every_benchmark_is_run_by_all_of_them_or_known_to_be_long():
    known = {module for module, *_ in every.RUNS} | {*every.LONG, *every.CHECKS, "__main__"}
    assert known == {script.stem for script in SCRIPTS}


def test_all_closing_lines_are_printed_together_and_a_benchmark_that_breaks_is_an_error(tmp_path, monkeypatch, capsys):
    finished = str(write_run(tmp_path / "a", 0, 0.8, 0.7, best=2))
    good, absent, broken = ("sparse_accuracy", finished), ("sparse_accuracy", "nowhere"), ("sparse_accuracy", "--wrong")
    assert every.main([], [good, absent]) == 0
    output = capsys.readouterr().out
    closings = [line for line in output.split("== results")[1].splitlines() if every.is_closing(line)]
    assert [json.loads(line)["ok"] for line in closings] == [False]
    assert "skipped: sparse_accuracy nowhere" in output
    assert every.main([], [good, broken]) == 1
    assert "failed: sparse_accuracy --wrong (exit code 2)" in capsys.readouterr().out


def test_device_check_finds_outputs_that_differ(tmp_path, monkeypatch, capsys):
    class Interpreter:
        def get_input_details(self) -> list[dict[str, Any]]:
            return [{"shape": np.array([1, 3, 2, 2])}]

        def get_tensor_details(self) -> list[dict[str, Any]]:
            return []

    monkeypatch.setattr(device_check.bench, "open_interpreter", lambda path: Interpreter())
    monkeypatch.setattr(device_check.bench, "predict", lambda path, inputs: inputs.sum((2, 3)))
    expected = str(tmp_path / "expected.npz")
    assert device_check.main(["make", expected, "model.tflite"]) == 0
    assert device_check.main(["compare", expected, "model.tflite"]) == 0
    assert closing(capsys.readouterr().out)["value"] == 0.0
    monkeypatch.setattr(device_check.bench, "predict", lambda path, inputs: inputs.sum((2, 3)) + 0.001)
    assert device_check.main(["compare", expected, "model.tflite"]) == 1
    line = closing(capsys.readouterr().out)
    assert line["ok"] is False
    assert line["value"] == pytest.approx(10, rel=0.01)  # of the allowed 1e-4
    monkeypatch.setattr(device_check.bench, "predict", lambda path, inputs: np.full((len(inputs), 3), np.nan))
    assert device_check.main(["compare", expected, "model.tflite"]) == 1
    assert device_check.main(["compare", str(tmp_path / "other.npz"), "model.tflite"]) == 2
    monkeypatch.setattr(device_check.bench, "predict", lambda path, inputs: np.ones((len(inputs), 3), np.float32))
    assert device_check.main(["make", expected, "model.tflite"]) == 2
    assert "nothing to compare" in capsys.readouterr().err


def test_device_check_takes_a_missing_kernel_only_where_it_is_announced(tmp_path, monkeypatch, capsys):
    class Interpreter:
        def get_input_details(self) -> list[dict[str, Any]]:
            return [{"shape": np.array([1, 3, 2, 2])}]

        def get_tensor_details(self) -> list[dict[str, Any]]:
            return []

    def refuse(path: Path, inputs: np.ndarray) -> np.ndarray:
        if path.name == "new.tflite":
            raise device_check.bench.BenchError(f"{path} is newer: Didn't find op for builtin opcode 'CONV_2D'")
        return inputs.sum((2, 3))

    monkeypatch.setattr(device_check.bench, "open_interpreter", lambda path: Interpreter())
    monkeypatch.setattr(device_check.bench, "predict", lambda path, inputs: inputs.sum((2, 3)))
    expected = str(tmp_path / "expected.npz")
    assert device_check.main(["make", expected, "old.tflite", "new.tflite"]) == 0
    monkeypatch.setattr(device_check.bench, "predict", refuse)
    compare = ["compare", expected, "old.tflite", "new.tflite"]
    assert device_check.main(compare) == 2
    assert device_check.main([*compare, "--may-refuse", "new.tflite"]) == 0
    output = capsys.readouterr().out
    assert "has no kernels for it: new.tflite" in output
    assert "1 files, 1 refused" in closing(output)["unit"]
    assert device_check.main(["compare", expected, "new.tflite", "--may-refuse", "new.tflite"]) == 2


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_works_from_anywhere_as_module_and_as_script(script, tmp_path):
    module = "benchmarks" if script.stem == "__main__" else f"benchmarks.{script.stem}"
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for command, folder in (([str(script)], tmp_path), (["-m", module], ROOT)):
        command = [sys.executable, *command, "--help"]
        done = subprocess.run(command, cwd=folder, env=plain, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"usage: python -m {module}" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_asking_for_help_loads_nothing_heavy(script):
    code = f"import runpy, sys; runpy.run_path({str(script)!r}); sys.exit(bool({{'torch', 'ray'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def square(piece: list[int]) -> dict[str, Any]:
    return {"square": piece[0] ** 2}


def test_pieces_that_are_done_are_not_done_again(tmp_path):
    path = tmp_path / "done.jsonl"
    path.write_text('{"piece": [3], "square": -1}\n{"piece": [2], "squ')
    records = workers.run_all(square, [[2], [3], [4]], path, processes=1)
    assert [record["square"] for record in records] == [4, -1, 16]
    assert workers.run_all(square, [[4], [3]], path, processes=1) == [records[2], records[1]]


def test_scores_are_ranked_by_how_they_order_the_retrained_plans():
    records = [
        {"piece": [i], "retrained": r, "same order": a, "opposite": -a, "one swapped": b}
        for i, (r, a, b) in enumerate([(0.7, 1, 2), (0.8, 5, 1), (0.85, 6, 3)])
    ]
    found = reward_fidelity.correlations(records)
    assert list(found) == ["same order", "one swapped", "opposite"]
    # Ranks 2, 1, 3 against 1, 2, 3: 1 - 6 * (1 + 1) / (3 * 8).
    assert found == pytest.approx({"same order": 1.0, "one swapped": 0.5, "opposite": -1.0})


def test_both_ways_of_choosing_channels_see_the_same_and_agree_on_it(capsys):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 12 * 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(12 * 4, 5, generator=generator, dtype=torch.float64)
    layer = lasso_path.Layer("layer", rows - rows.mean(0), weight, 12)
    assert np.allclose(lasso_path.contributions(layer).sum(1), (layer.rows @ weight).flatten())
    found = lasso_path.compare(layer)
    assert len(found.same) == len(found.errors) == 11  # of 20 ratios of 12 channels, 1 to 11
    assert sum(found.same) >= 10
    errors = np.array(found.errors)
    assert (np.diff(errors, axis=0) < 0).all()
    assert 0 < errors[-1, 0] < errors[0, 0] < 1
    lasso_path.report([found, lasso_path.Result(1.0, 0.0, [False] * 11, [(0.1, 0.2), (0.3, 0.2)])])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1]["value"] == pytest.approx(sum(found.same) / 22, rel=1e-5)
    assert [line["goal"] for line in lines] == [">= 20", ">= 0.95", ">= 0.95"]


def test_data_that_selection_needs_and_does_not_find_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lasso_path, "needed", lambda model: [tmp_path / "nowhere" / model])
    assert lasso_path.main([]) == result.SKIPPED
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert "nowhere/resnet56 is missing. Remedy" in output


def quality(accuracies: list[float], test: float) -> dict[str, Any]:
    origins = ["allocate", "uniform", "heuristic", *["searched"] * (len(accuracies) - 3)]
    return {"accuracies": accuracies, "origins": origins, "origin": "searched", "seen": max(accuracies),
            "validation": 0.5, "test": test, "trials": 4, "seconds": 8.0, "scoring": 6.0}  # fmt: skip


def test_a_plan_is_passed_by_two_points_and_not_before():
    run = quality([0.40, 0.20, 0.30, 0.41, 0.421, 0.5], 0.5)
    assert search_quality.trials_to_pass(run, 0.2) == 1
    assert search_quality.trials_to_pass(run, 0.4) == 5
    assert search_quality.trials_to_pass(run, 0.49) is None


def test_the_table_of_searchers_has_means_spreads_and_the_trials_to_pass():
    runs = [quality([0.40, 0.20, 0.30, 0.43], 0.50), quality([0.40, 0.20, 0.30, 0.41], 0.60)]
    rows = search_quality.table({"allocate": [quality([0.4, 0.2], 0.4)], "tpe": runs}).splitlines()
    assert rows[2] == "| allocate | 1 | 40.00 | 50.00 | 40.00 |  |  |  |"
    assert rows[3] == (
        "| tpe | 2 | 42.00 (41.00 .. 43.00) | 50.00 (50.00 .. 50.00) | 55.00 (50.00 .. 60.00) | 1, 1 | 4, never | 30 |"
    )


def test_the_made_up_landscape_has_its_best_plan_on_the_target_and_a_uniform_plan_of_minus_one():
    space, score, best = synthetic.landscape(0)
    assert len(space) == synthetic.KNOBS
    assert space.meets(best, synthetic.LIMITS)
    assert score(best) == pytest.approx(0.0, abs=1e-9)
    assert score(space.uniform(synthetic.LIMITS)) == pytest.approx(-1.0)
    # A positive form: whichever way from the best plan, it gets worse.
    moves = 0.01 * np.random.default_rng(0).standard_normal((200, synthetic.KNOBS))
    assert max(score(space.decode(space.encode(best) + move)) for move in moves) < 0
    assert synthetic.landscape(1)[2] != best


@pytest.mark.parametrize("name", variants.ABLATION)
def test_every_variant_searches_the_made_up_landscape(name):
    record = synthetic.search(["synthetic", name, 0, 6, ""])
    assert len(record["scores"]) == 6
    assert record["scores"][0] == pytest.approx(-1.0)


def test_a_part_that_is_taken_out_of_the_critics_search_is_gone():
    space, *_ = synthetic.landscape(0)
    first = (("uniform", space.uniform(synthetic.LIMITS)),)
    best, centers = np.full((24, 1), 0.3), {}
    for name in ("critic", *variants.PARTS):
        found, settings = variants.variant(name, 10)
        searcher = found(space, synthetic.LIMITS, settings, seed=0, trials=10, first_plans=first)
        seen = np.zeros((24, searcher.agent.critic[0].in_features - 1))
        centers[name] = searcher.centers(best)
        drawn = np.zeros((50, 24, 1))
        drawn[:, 0, 0] = np.linspace(-1, 1, 50)
        chosen = {searcher.choice(seen, drawn, np.ones((24, 1))) for _ in range(5)}
        assert len(chosen) == 1 or name == "critic_by_chance"
    assert (centers["critic_best_only"][0] == best).all()
    assert (centers["critic"][0] == 0).all()
    assert all((around[1] == best).all() for around in centers.values())


def test_a_presets_warm_up_keeps_its_share_of_the_trials():
    assert variants.preset("ddpg_amc", 400)["warmup"] == 100
    assert variants.preset("ddpg_amc", 60) == {**variants.preset("ddpg_amc", 400), "warmup": 15}


def test_the_table_of_a_made_up_search_has_the_best_scores_and_those_at_half_the_trials():
    runs = [{"scores": [-1.0, -0.8, -0.5, -0.6], "seconds": 2.0}, {"scores": [-1.0, -0.6, -0.7, -0.3], "seconds": 4.0}]
    rows = synthetic.table({"critic": runs}).splitlines()
    assert rows[2] == "| critic | 2 | -0.400 | -0.500 .. -0.300 | -0.700 | 3.0 |"


def test_filters_are_ranked_away_until_so_many_are_gone_or_the_size_is_reached():
    from pfray.data import digits
    from pfray.measure.cost import count_params
    from pfray.models.lenet import lenet
    from pfray.pruning.channels.keep_ratios import graph_of

    task = digits.build()
    torch.manual_seed(0)
    model = lenet(in_channels=1)

    def filters(of: torch.nn.Module) -> list[int]:
        return [group.units for group in graph_of(of, task).groups]

    whole, params = filters(model), count_params(model)[0]
    fewer = layer_removal.rank_away(model, task, params=1, most=30)
    assert sum(filters(fewer)) == sum(whole) - 30
    assert filters(model) == whole
    reached = layer_removal.rank_away(model, task, params=0.9 * params, most=1000)
    # One filter more would be too large: the largest of LeNet's has 421 parameters.
    assert 0.9 * params - 421 < count_params(reached)[0] <= 0.9 * params
    smallest = layer_removal.rank_away(model, task, params=1, most=1000)
    with pytest.raises(UnsupportedModel, match="conv1: a single channel; conv2: a single channel"):
        layer_removal.rank_away(smallest, task, params=1, most=10)


def test_a_network_is_searched_from_nothing_and_trained_like_the_students():
    kind = ["digits", "vgg11", 0.0625, 1]
    chosen = layer_removal.choose_network(["architecture", kind, 3, 0])
    assert len(chosen["rewards"]) == 3
    assert chosen["reward"] == max(chosen["rewards"])
    [stage] = layer_removal.train(["architecture", kind, 1, 0, chosen["plan"], []])["stages"]
    assert stage["fewer"] >= 1 / layer_removal.LARGEST
    assert 0 < stage["test"] < 1


def test_iterations_are_counted_until_a_student_has_the_reward_wanted():
    rewards = [0.1, 0.1, 0.1, 0.1, 0.6, 0.2, 0.2, 0.3, 0.3, 0.5]
    best, mean = (policy_transfer.by_iteration(rewards, of) for of in (max, fmean))
    assert best == [0.6, 0.5]
    assert mean == pytest.approx([0.2, 0.3])
    assert [policy_transfer.iterations_to(wanted, mean) for wanted in (0.1, 0.25, 0.4)] == [1, 2, None]
    assert policy_transfer.iterations_to(0.6, best) == 1


def test_kills_are_the_same_for_a_seed_of_all_kinds_and_before_the_search_ends():
    planned = kills.schedule(20, trials=80, seed=0)
    assert planned == kills.schedule(20, trials=80, seed=0) != kills.schedule(20, trials=80, seed=1)
    assert {kind: sum(k == kind for _, k in planned) for kind in kills.SHARES} == kills.SHARES
    moments = [done for done, _ in planned]
    assert moments == sorted(moments)
    assert moments[0] >= 1
    assert moments[-1] < 72


def test_trials_that_are_lost_doubled_or_failed_are_counted():
    records = [{"trial": number, "plan": {"a": number}, "error": None} for number in (0, 1, 1, 3)]
    records[3]["error"] = "its worker died"
    assert kills.faults(records, trials=5, plans=5) == {"lost": 2, "doubled": 1, "failed": 1, "fewer plans": 2}
    assert kills.faults([{**records[0], "trial": 0}], trials=1, plans=1) == dict.fromkeys(
        ("lost", "doubled", "failed", "fewer plans"), 0
    )


def test_the_rate_is_that_of_the_time_in_which_all_slots_were_taken():
    # Two slots: 0..4, 4..8, 8..12, and from 2 on 2..6, 7..11, the second one a second late.
    trials = [trial(end, end - begin) for begin, end in ((0, 4), (4, 8), (8, 12), (2, 6), (7, 11))]
    assert weak_scaling.window(trials, 2) == (2, 8)
    rate, busy = weak_scaling.rates(trials, 2)
    assert rate == pytest.approx(60 * 3 / 6)
    assert busy == pytest.approx(11 / 12)
