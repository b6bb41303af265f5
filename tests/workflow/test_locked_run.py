"""Finished runs from Python: returned for the model and data that they began with, and for no others."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pfray.config.schema import Experiment
from pfray.errors import RunExists
from pfray.reporting.observers import Observers
from pfray.run import execute
from pfray.storage.run_folder import RunFolder
from pfray.utils.files import read_json, write_json
from pfray.workflow import setup
from pfray.workflow.given import Given, Judging, given_run
from pfray.workflow.locked_run import locked_run, refusal
from tests.summaries import SUMMARY

X = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
# One class after the other, which a run shuffles before anything else.
Y = torch.arange(40) // 10


def given(seed: int = 0, inputs: torch.Tensor = X, **judged: Any) -> Given:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    data = (inputs, Y)
    return given_run(model, data, data, data, Judging(**judged))


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    """Of a finished run with a made-up result."""
    found = Experiment.model_validate({
        "name": "exp", "model": "Sequential", "data": "tuple", "learner": "weight_sparse", "target": {"sparsity": 0.5},
        "storage": str(tmp_path),
    })  # fmt: skip
    observers = Observers([])
    with locked_run(found, observers, given(), resume=False, force=False) as locked:
        locked.check(setup.load(found, observers, given()), found.search.trials)
        locked.open()
        locked.folder.trials.touch()
        locked.folder.write_summary(SUMMARY)
    return found


def test_a_finished_run_is_returned_for_the_same_model_and_data(experiment):
    finished = execute(experiment, given(), resume=True)
    assert finished.summary.to_dict()["compressed"] == SUMMARY["compressed"]


@pytest.mark.parametrize(("changes", "words"), [
    ({"seed": 1}, "changed: the model's weights. Remedy"),
    ({"inputs": X + 0.1}, "the data's values"),
    ({"metric": "top5"}, "changed: metric top5 instead of accuracy. Remedy"),
    ({"loss": nn.CrossEntropyLoss()}, "changed: loss torch.nn.modules.loss.CrossEntropyLoss"),
])  # fmt: skip
def test_a_finished_run_is_refused_for_others(experiment, changes, words):
    before = RunFolder.at(experiment.storage, "exp").summary.read_bytes()
    with pytest.raises(RunExists, match="holds a run that began with something else") as caught:
        execute(experiment, given(**changes), resume=True)
    assert words in str(caught.value)
    assert RunFolder.at(experiment.storage, "exp").summary.read_bytes() == before


def test_a_finished_run_of_another_version_is_returned(experiment):
    folder = RunFolder.at(experiment.storage, "exp")
    write_json(folder.identity, {**(read_json(folder.identity) or {}), "pfray": "0.0"})
    folder.write_summary(json.loads(folder.summary.read_text()))  # with the checksums of the files as they are
    assert execute(experiment, given(loss=F.cross_entropy), resume=True).model is None


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_a_run_would_be_refused_for_is_told_without_a_lock(experiment, tmp_path, scheme):
    asked = experiment.model_copy(update={"storage": f"{scheme}{tmp_path}"})
    before = sorted(tmp_path.rglob("*"))
    told = refusal(asked, given(), resume=False, force=False)
    assert told is not None
    words = "exp holds a run, finished. Remedy: --resume to continue it, --force to replace it, or name=..."
    assert told.endswith(words)
    assert refusal(asked, given(), resume=True, force=False) is None
    assert refusal(asked, given(), resume=False, force=True) is None
    assert refusal(asked.model_copy(update={"name": "other"}), given(), resume=False, force=False) is None
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "mine.txt").touch()
    told = refusal(asked.model_copy(update={"name": "files"}), given(), resume=False, force=False)
    assert told is not None
    assert "files holds files but no run" in told
    assert [path for path in sorted(tmp_path.rglob("*")) if "files" not in str(path.relative_to(tmp_path))] == before
