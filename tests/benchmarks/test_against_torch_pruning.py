"""The rows of the comparison: what they are made from, and what is read of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import against_torch_pruning as against
from benchmarks.torch_pruning_resnet import prune
from pfray.models.resnet import CifarResNet
from pfray.workflow.experiment_file import load_experiment
from tests.small import make_task

OWN: dict[str, Any] = {
    "seed": 3, "epochs": 20, "limit_train": 1000, "network": "resnet20", "data": "/d", "weights": "/w.pt",
}  # fmt: skip


def row(name: str, seed: int, after: float, **more: float) -> dict[str, Any]:
    return {"piece": {"row": name, "seed": seed, "epochs": 20}, "after": after, "seconds": 600.0, **more}


def test_both_runs_differ_in_the_learner_and_the_search_alone(tmp_path: Path) -> None:
    own = {**OWN, "folder": str(tmp_path)}
    runs = [load_experiment(against.EXPERIMENT, against.overrides(name, own, 7)) for name in against.ROWS[1:]]
    peer, ours = runs
    assert peer.learner.name == "benchmarks.pruned_elsewhere:PrunedElsewhere"
    assert peer.learner.settings == {"file": str(tmp_path / "resnet20.pt")}
    assert (ours.learner.name, ours.search.trials) == ("channel_pruned", 7)
    assert peer.model_copy(update={"learner": ours.learner, "search": ours.search}) == ours
    for run in runs:
        assert (run.finetune.epochs, run.seed, run.search.baselines) == (20, 3, ())
        assert run.target.costs()["macs"].plain() == "0.4x"
        assert run.data.settings["limit_train"] == 1000
        assert run.distill.weight > 0


def test_the_networks_own_training_goes_on_from_the_pruned_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    task, model = make_task((3, 8, 8), classes=10), CifarResNet(8)
    monkeypatch.setattr(against, "load", lambda _: (task, CifarResNet(8)))
    piece = {**OWN, "row": against.OWN, "epochs": 1, "network": "small", "folder": str(tmp_path)}
    prune(model, torch.zeros(1, 3, 8, 8), against.FACTOR)
    torch.save(model.state_dict(), against.pruned_file(piece))
    trained = []
    monkeypatch.setattr(against, "measured", lambda model, _: trained.append(model) or {"accuracy": 0.5})
    record = against.train_own(piece)
    assert record["after"] == 0.5
    assert record["seconds"] > 0
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in trained[0].state_dict().items()} == shapes
    # One step of at most 0.01 times the gradient: near the pruned weights, and not equal to them.
    moved = (trained[0].linear.weight - model.linear.weight).abs().max()
    assert 0 < moved < 0.05
    assert list(tmp_path.iterdir()) == [against.pruned_file(piece)]


def test_the_table_counts_the_pruning_in_the_rows_of_its_network() -> None:
    whole = {"piece": {"network": "resnet20"}, "macs": 0.3986, "params": 0.587, "before": 0.1359, "teacher": 0.8872,
             "seconds": 60.0}  # fmt: skip
    rows = [row(against.OWN, 0, 0.85), row(against.WITH_OURS, 0, 0.86, macs=0.3987, params=0.588),
            row(against.OURS, 0, 0.8822, macs=0.4, params=0.5, before=0.75)]  # fmt: skip
    lines = against.table(whole, rows).splitlines()
    assert lines[1] == "resnet20, 20 epochs; whole network 88.72 % on the test split"
    assert lines[5:] == [
        "| Torch-Pruning, its own training | 0 | 0.399x | 0.587x | 13.59 | 85.00 | 3.72 | 11.0 |",
        "| Torch-Pruning, pfray's training | 0 | 0.399x | 0.588x | 13.59 | 86.00 | 2.72 | 11.0 |",
        "| pfray | 0 | 0.400x | 0.500x | 75.00 | 88.22 | 0.50 | 10.0 |",
    ]
    assert lines[3].count("|") == lines[4].count("|") == lines[5].count("|")


def test_pfray_is_judged_beside_both_rows_by_the_means_over_the_seeds() -> None:
    rows = [row(against.OWN, 0, 0.85), row(against.OWN, 1, 0.87), row(against.WITH_OURS, 0, 0.88),
            row(against.WITH_OURS, 1, 0.89), row(against.OURS, 0, 0.88), row(against.OURS, 1, 0.88)]  # fmt: skip
    values = [value for (value, _), goal in against.judged(rows) if goal == "> 0"]
    assert values == pytest.approx([2.0, -0.5])


def test_a_run_is_another_one_where_its_settings_are(tmp_path: Path) -> None:
    path, own = tmp_path / "it.yaml", {**OWN, "folder": str(tmp_path)}
    path.write_text(against.EXPERIMENT.read_text().replace("../configs", str(against.ROOT / "configs")))
    before = against.run_piece(against.OURS, own, path)["settings"]
    assert against.run_piece(against.OURS, own, path)["settings"] == before
    path.write_text(path.read_text() + "resources: {parallel: 1}\n")
    after = against.run_piece(against.OURS, own, path)["settings"]
    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]
    assert json.loads(before[0].partition("=")[2]) == {"name": "resnet20", "weights": "/w.pt"}
