"""A training's curve, without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from learners.weight_sparse import Settings, WeightSparse
from pfray.learner.context import Context, Recipe
from pfray.nn.modes import place
from pfray.task import as_split
from pfray.training.loop import Shard
from pfray.training.settings import Training
from pfray.workflow.curve import read_curve
from pfray.workflow.worker import TrainingSpec, train_candidate
from tests.small import make_task
from tests.zoo import conv, head


def trained(folder: Path, task) -> list[dict]:
    folder.mkdir()
    torch.manual_seed(0)
    teacher = place(torch.nn.Sequential(conv(2, 8), head(8, 3)), "cpu")
    plan = WeightSparse(teacher, task).space().uniform({"sparsity": 0.5})
    candidate = Recipe(WeightSparse, Settings(), Training(epochs=2, lr=0.01, batch_size=10)).candidate(plan)
    spec = TrainingSpec(candidate, Context(task, teacher), folder)
    train_candidate(spec, Shard(), torch.device("cpu"), None, lambda state: None)
    return read_curve(folder)


def test_the_curve_has_the_pace_and_of_data_read_batch_by_batch_the_processes(tmp_path):
    task = make_task()
    whole = task.train.head(None)
    samples = list(zip(whole.inputs, whole.targets.tolist(), strict=True))
    read = replace(task, train=replace(as_split("train", samples), loaders=1))
    curves = [trained(tmp_path / name, each) for name, each in (("memory", task), ("read", read))]

    assert [[entry["epoch"] for entry in curve] for curve in curves] == [[1, 2], [1, 2]]
    assert all(entry["images_per_second"] > 0 for curve in curves for entry in curve)
    assert [[entry.get("loaders") for entry in curve] for curve in curves] == [[None, None], [1, 1]]
