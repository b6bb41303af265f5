"""Searches of whole runs: stopped early, seeded, of settings too, by scores that weigh the cost, and out of plans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pfray.config.schema import load
from pfray.run import main, run
from pfray.search._trial_log import read_trials
from tests.whole_runs import summary_of, write


def test_asha_stops_bad_plans_early_and_the_search_completes(ray_cluster, tmp_path, quick):
    raw = {
        **quick, "finetune": {"epochs": 0, "lr": 0.02, "batch_size": 64}, "export": {"tflite": False},
        "search": {"name": "random", "trials": 9, "rounds": 3, "finetune_steps": 4, "scheduler": "asha", "spread": 1.0,
                   "validation_images": 100, "rescore": 3, "baselines": ["uniform"]},
    }  # fmt: skip
    folder = run(load(write(tmp_path, raw)))
    rounds = [record["rounds"] for record in read_trials(folder / "search" / "trials.jsonl")]
    assert len(rounds) == 9
    assert rounds[0] == max(rounds) == 3
    assert min(rounds) < 3
    assert {record["rounds"] for record in read_trials(folder / "rescore" / "trials.jsonl")} == {3}
    assert summary_of(folder)["exported"] is None


def test_the_same_seed_gives_the_same_run(ray_cluster, tmp_path, quick):
    search = {"name": "tpe", "trials": 5, "startup": 3}
    raw = {**quick, "export": {"tflite": False}, "search": search}
    folders = [run(load(write(tmp_path, raw), [f"name=run{i}", "finetune.epochs=0"])) for i in (1, 2)]
    first, second = ([(r["plan"], r["score"]) for r in read_trials(f / "search" / "trials.jsonl")] for f in folders)
    assert first == second


def test_settings_are_searched_beside_the_layers_and_used_in_the_retraining(ray_cluster, tmp_path, quick):
    raw = {
        **quick, "export": {"tflite": False}, "finetune": {"epochs": 1, "lr": 0.02, "batch_size": 64},
        "search": {"name": "gp", "trials": 6, "startup": 4, "finetune_steps": 4, "rescore": 0, "baselines": [],
                   "space": {"finetune.lr": "loguniform(1e-9, 1e-7)", "learner.interval": "integers(2, 4)"}},
    }  # fmt: skip
    folder = run(load(write(tmp_path, raw)))
    records = read_trials(folder / "search" / "trials.jsonl")
    rates = [record["plan"]["finetune.lr"] for record in records]
    assert len(set(rates)) > 2
    assert all(1e-9 <= rate <= 1e-7 for rate in rates)
    assert {record["plan"]["learner.interval"] for record in records} <= {2.0, 3.0, 4.0}
    plan = summary_of(folder)["plan"]
    # With steps so small the training can have pruned the weights, and not moved them.
    teacher = load_file(folder / "teacher.safetensors")
    trained = load_file(folder / "training" / "compressed.safetensors")
    kept = trained["fc1.weight"] != 0
    assert 1 - kept.float().mean().item() == pytest.approx(plan["fc1"], abs=1e-3)
    assert torch.allclose(trained["fc1.weight"][kept], teacher["fc1.weight"][kept], atol=1e-5)


def test_a_score_that_weighs_the_cost_leaves_plans_below_the_target_where_they_are(ray_cluster, tmp_path, quick):
    raw = {
        **quick, "target": {"sparsity": "50%"}, "finetune": {"epochs": 0}, "export": {"tflite": False},
        "search": {"name": "random", "trials": 7, "objective": "amc"},
    }  # fmt: skip
    folder = run(load(write(tmp_path, raw)))
    records = [r for r in read_trials(folder / "search" / "trials.jsonl") if r["origin"] == "random"]
    costs = [record["cost"]["sparsity"] for record in records]
    assert min(costs) >= 0.5
    assert max(costs) > 0.51
    for record in records:
        measured = record["measurement"]
        assert record["score"] == pytest.approx(-(1 - measured["accuracy"]) * np.log(measured["nonzero_params"]))


def test_a_search_with_no_plan_left_says_so_and_the_run_goes_on(ray_cluster, tmp_path, quick, capsys):
    # Each layer has 8 bits or 32, and eight on average is all of them at 8: there is one plan.
    raw = {
        **quick, "learner": {"name": "litert_quant", "images": 50}, "target": {"bits": 8}, "finetune": {"epochs": 0},
        "export": {"tflite": False},
    }  # fmt: skip
    assert main([str(write(tmp_path, raw))]) == 0
    assert "note: search is complete with 1 of 6 trials: only one plan meets the target" in capsys.readouterr().out
    assert summary_of(Path(raw["storage"]) / "exp")["trials"]["finished"] == 1
