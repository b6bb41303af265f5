"""A training's curve, without Ray."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from learners import filter_ranked as ranked
from learners.filter_ranked import FilterRanked
from learners.weight_sparse import Settings, WeightSparse
from pfray.data import _readers
from pfray.learner.context import Context, Recipe
from pfray.measure.cost import total_macs
from pfray.nn.modes import place
from pfray.task import as_split, example_input
from pfray.training.loop import Shard
from pfray.training.settings import Distill, Training
from pfray.workflow.curve import read_curve
from pfray.workflow.worker import TrainingSpec, train_candidate
from tests.small import make_task
from tests.zoo import conv, head


def train(folder: Path, task, checkpoint: dict[str, Any] | None = None) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    """The trained model, and the states after each epoch."""
    folder.mkdir(exist_ok=True)
    states: list[dict[str, Any]] = []
    torch.manual_seed(0)
    teacher = place(torch.nn.Sequential(conv(2, 8), head(8, 3)), "cpu")
    plan = WeightSparse(teacher, task).space().uniform({"sparsity": 0.5})
    candidate = Recipe(WeightSparse, Settings(), Training(epochs=2, lr=0.01, batch_size=10)).candidate(plan)
    spec = TrainingSpec(candidate, Context(task, teacher), folder)
    model = train_candidate(spec, Shard(), torch.device("cpu"), checkpoint, lambda s: states.append(copy.deepcopy(s)))
    return model, states


def curve(folder: Path, task) -> list[dict]:
    train(folder, task)
    return read_curve(folder)


def test_the_curve_has_the_pace_and_of_data_read_batch_by_batch_the_processes(tmp_path):
    task = make_task()
    whole = task.train.head(None)
    samples = list(zip(whole.inputs, whole.targets.tolist(), strict=True))
    read = replace(task, train=replace(as_split("train", samples), loaders=1))
    curves = [curve(tmp_path / name, each) for name, each in (("memory", task), ("read", read))]

    assert [[entry["epoch"] for entry in curve] for curve in curves] == [[1, 2], [1, 2]]
    assert all(entry["images_per_second"] > 0 for curve in curves for entry in curve)
    assert [[entry.get("loaders") for entry in curve] for curve in curves] == [[None, None], [1, 1]]


def test_features_and_cached_views_go_on_from_a_checkpoint_with_the_same_bits(tmp_path):
    """With channels taken out of the only stage, so that its adapter is in the checkpoint."""
    torch.manual_seed(0)
    teacher, task = place(torch.nn.Sequential(conv(2, 8), head(8, 3)), "cpu"), make_task()
    plan = FilterRanked(teacher, task).space().uniform({"macs": 0.5 * total_macs(teacher, example_input(task))})
    distill, training = Distill(weight=0.5, features=1.0, cached_views=1), Training(epochs=4, lr=0.01, batch_size=10)
    candidate = Recipe(FilterRanked, ranked.Settings(round_to=1), training, distill).candidate(plan)
    spec, states = TrainingSpec(candidate, Context(task, teacher), tmp_path, views=tmp_path / "views"), {}

    def keep(state: dict) -> None:
        states.setdefault(state["epoch"], copy.deepcopy(state))

    def train(checkpoint: dict | None) -> dict[str, torch.Tensor]:
        return train_candidate(spec, Shard(), torch.device("cpu"), checkpoint, keep).state_dict()

    whole = train(None)
    assert whole["0.0.weight"].shape[0] == 4
    assert states[1]["optimizer"]["adapters"]["0.weight"].shape == (8, 4)
    assert len(list((tmp_path / "views").rglob("*.safetensors"))) == 1
    again = train(states[1])
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def rows(parts):
    whole = make_task().train.head(None)
    for part in parts:
        yield from ({"x": x, "y": y} for x, y in zip(
            whole.inputs[part::4].tolist(), whole.targets[part::4].tolist(), strict=True
        ))


def test_a_training_is_continued_by_as_many_processes_as_it_began_with(tmp_path, monkeypatch):
    """Because each reads shards of its own. The number by default is that of the machine."""
    task = make_task()

    def streamed() -> Any:
        data = datasets.IterableDataset.from_generator(rows, gen_kwargs={"parts": [0, 1, 2, 3]}).with_format("torch")
        split = as_split("train", data, lambda batch: (batch["x"], batch["y"]), length=len(task.train))
        return replace(task, train=replace(split, loaders=None))

    def weights(model: torch.nn.Module) -> list[float]:
        return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()

    monkeypatch.setattr(_readers, "default_loaders", lambda gpu: 2)
    model, states = train(tmp_path / "whole", streamed())
    assert [state["loaders"] for state in states] == [2, 2]

    monkeypatch.setattr(_readers, "default_loaders", lambda gpu: 0)
    continued, _ = train(tmp_path / "continued", streamed(), copy.deepcopy(states[0]))
    assert weights(continued) == weights(model)
    unknown = {key: value for key, value in states[0].items() if key != "loaders"}
    other, _ = train(tmp_path / "other", streamed(), unknown)
    assert weights(other) != pytest.approx(weights(model), abs=1e-6)
