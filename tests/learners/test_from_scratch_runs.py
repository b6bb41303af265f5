"""Learners whose models start with random weights, in whole runs: a student of the right size, a network searched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import pfray
from pfray.config.schema import load
from pfray.data import digits
from pfray.errors import ConfigError, InfeasibleTarget
from pfray.measure.evaluation import evaluate
from pfray.models.vgg import vgg7
from pfray.reporting.observers import Observers
from pfray.run import run
from pfray.workflow.setup import load as load_start

DISTILLED = {
    "learner": {"name": "distilled", "width": 0.25}, "search": "uniform", "distill": {"weight": 0.7},
    "target": {"params": "0.4x"},
}  # fmt: skip
SEARCHED = {
    "learner": {"name": "architecture", "channels": [16, 32, 64], "depth": 2}, "target": {"params": "0.4x"},
    "search": {"name": "gp", "trials": 4, "startup": 2, "spread": 1.0, "finetune_steps": 4, "rescore": 0,
               "baselines": [], "validation_images": 100},
    "distill": {"weight": 0.7}, "export": {"tflite": False},
}  # fmt: skip


def experiment(quick: dict[str, Any], folder: Path, **sections: Any) -> Path:
    raw = {**quick, "finetune": {"epochs": 3, "lr": 0.1, "batch_size": 64}, "name": "scratch", **sections}
    path = folder / "scratch.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_a_run_trains_a_student_of_the_asked_size_and_ships_it(ray_cluster, quick, tmp_path):
    folder = run(load(experiment(quick, tmp_path, **DISTILLED)))
    summary = json.loads((folder / "summary.json").read_text())
    teacher, student = summary["teacher"], summary["compressed"]
    assert student["params"] <= 0.4 * teacher["params"] < 1.5 * student["params"]
    assert student["accuracy"] > 0.8
    assert summary["exported"]["accuracy"] == pytest.approx(summary["exported"]["torch_accuracy"], abs=0.02)
    assert (folder / "model.tflite").stat().st_size < 0.5 * (folder / "teacher.tflite").stat().st_size
    # Both files hold the student.
    again = vgg7(in_channels=1, width=summary["plan"]["width"])
    again.load_state_dict(pfray.load(folder / "model.packed"))
    task = digits.build()
    assert evaluate(again, task, task.test).accuracy == pytest.approx(student["accuracy"], abs=1e-6)
    inputs = task.normalize(task.test.inputs[:3])
    with torch.inference_mode():
        assert torch.allclose(pfray.load(folder / "model.pt2")(inputs), again.eval()(inputs), atol=1e-4)


def test_a_run_searches_a_network_from_nothing(ray_cluster, quick, tmp_path):
    folder = run(load(experiment(quick, tmp_path, **SEARCHED)))
    summary = json.loads((folder / "summary.json").read_text())
    records = [json.loads(line) for line in (folder / "search" / "trials.jsonl").read_text().splitlines()]
    assert len({tuple(record["plan"].values()) for record in records}) == summary["trials"]["finished"] == 4
    for record in records:
        assert record["error"] is None
        assert record["cost"]["params"] == record["measurement"]["params"] <= 0.4 * summary["teacher"]["params"]
    assert len({record["score"] for record in records}) == 4
    # Every trial is trained for as long; the chosen one, once more and longer.
    assert summary["compressed"]["accuracy"] > max(record["measurement"]["accuracy"] for record in records)
    state = pfray.load(folder / "model.packed")
    assert sum(v.numel() for k, v in state.items() if "running" not in k and "tracked" not in k) == (
        summary["compressed"]["params"]
    )


@pytest.mark.parametrize(("sections", "message"), [
    ({**SEARCHED, "search": "gp"}, r"search.finetune_steps: 0 is not allowed: the models of architecture start untr"),
    ({**DISTILLED, "search": {"name": "gp", "objective": "n2n"}}, r"search.finetune_steps: 0 .* models of distilled"),
    ({**DISTILLED, "finetune": {"epochs": 0}}, r"finetune.epochs: 0 is not allowed: the model of distilled starts"),
    ({**DISTILLED, "target": {"latency_ms": "0.5x"}}, r"target.latency_ms: '0.5x' .* Remedy: milliseconds"),
    ({**DISTILLED, "learner": {"name": "distilled", "student": "lenet"}, "search": "tpe"}, r"search.name: distilled"),
])  # fmt: skip
def test_what_would_judge_untrained_models_is_refused(quick, tmp_path, sections, message):
    with pytest.raises(ConfigError, match=message):
        load_start(load(experiment(quick, tmp_path, **sections)), Observers())


def test_relative_targets_are_relative_to_the_teacher_and_not_to_the_largest_student(quick, tmp_path):
    start = load_start(
        load(experiment(quick, tmp_path, **DISTILLED | {"target": {"macs": "0.9x"}})), Observers()
    )
    assert start.limits["macs"] == pytest.approx(0.9 * 416_520)  # LeNet's
    fixed = {**DISTILLED, "learner": {"name": "distilled", "student": "lenet"}}
    with pytest.raises(InfeasibleTarget, match=r"target.params: .* is out of reach"):
        load_start(load(experiment(quick, tmp_path, **fixed)), Observers())
