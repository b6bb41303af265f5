"""Data, models and weights of bad form are one short line at load, before Ray starts and anything is written."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from pfray.config.schema import Experiment
from pfray.errors import PfrayError, UnsupportedModel, WeightsError
from pfray.nn.checks import check_evaluation, check_values
from pfray.run import main
from pfray.task import Split
from pfray.utils.random_state import generators
from pfray.workflow import inspection
from pfray.workflow.components import resolve
from pfray.workflow.setup import build_model, build_task
from tests import bad_forms
from tests.bad_forms import DATA, MODELS
from tests.bad_weights import WEIGHTS


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate({
        "name": "exp", "model": "tests.bad_forms:model", "data": "tests.bad_forms:task", "learner": "weight_sparse",
        "target": {"sparsity": 0.5}, **changes,
    })  # fmt: skip


def loaded(**changes: Any) -> tuple[nn.Module, list[str]]:
    """(the model, the notes), through what a run and ``pfray.inspect`` load by."""
    wanted, notes = experiment(**changes), list[str]()
    parts = resolve(wanted)
    return build_model(wanted, parts, build_task(wanted, parts, notes.append), notes.append), notes


def refused(kind: type[PfrayError], words: str, **changes: Any) -> None:
    with pytest.raises(PfrayError) as caught:
        loaded(**changes)
    text = str(caught.value)
    assert type(caught.value) is kind, text
    assert words in text
    assert caught.value.exit_code == 2
    assert text.isprintable()
    assert len(text) < 400
    assert "Remedy: " in text


@pytest.mark.filterwarnings("ignore:.*(prototype|beta|deprecated).*")
@pytest.mark.parametrize("form", DATA)
def test_data_of_bad_form_is_one_line(form):
    _, kind, words = DATA[form]
    refused(kind, words, data={"factory": "tests.bad_forms:data", "form": form})


@pytest.mark.filterwarnings("ignore:.*(prototype|beta|deprecated).*")
@pytest.mark.parametrize("form", MODELS)
def test_a_model_of_bad_form_is_one_line(form):
    _, kind, words = MODELS[form]
    refused(kind, words, model={"factory": "tests.bad_forms:model", "form": form})


@pytest.mark.filterwarnings("ignore:.*(prototype|beta|deprecated).*")
@pytest.mark.parametrize("form", WEIGHTS)
def test_weights_of_bad_form_are_one_line(form, tmp_path):
    make, words = WEIGHTS[form]
    torch.save(make(dict(bad_forms.Net().state_dict())), tmp_path / "w.pt")
    refused(WeightsError, words, model={"factory": "tests.bad_forms:model", "weights": str(tmp_path / "w.pt")})


def test_what_is_no_file_is_not_opened(tmp_path):
    """A pipe would be waited for, a device read without an end."""
    os.mkfifo(tmp_path / "pipe.pt")
    for path, words in (
        (tmp_path / "pipe.pt", "is a pipe, not a file"), (tmp_path, "is a folder, not a file"),
        (Path("/dev/zero"), "is a device, not a file"), (tmp_path / "none.pt", "no file "),
        (tmp_path / ("x" * 5000), "no file "), (tmp_path / "a\nb", r"a\nb"),
    ):  # fmt: skip
        refused(WeightsError, words, model={"factory": "tests.bad_forms:model", "weights": str(path)})


@pytest.mark.parametrize("command", [main, inspection.main])
@pytest.mark.parametrize(("changes", "words"), [
    ({"data": {"factory": "tests.bad_forms:data", "form": "label too large, test"}}, "the label 12"),
    ({"data": {"factory": "tests.bad_forms:data", "form": "NaN in inputs, test"}}, "hold nan"),
    ({"model": {"factory": "tests.bad_forms:model", "form": "random branch"}}, "other outputs"),
])  # fmt: skip
def test_a_run_and_inspect_refuse_alike_before_ray_starts(tmp_path, monkeypatch, capsys, command, changes, words):
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    raw = {"model": "tests.bad_forms:model", "data": "tests.bad_forms:task", "learner": "weight_sparse",
           "target": {"sparsity": 0.5}, "storage": str(tmp_path / "runs"), **changes}  # fmt: skip
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(raw))
    assert command([str(tmp_path / "exp.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not (tmp_path / "runs").exists()


def test_classes_without_samples_are_a_note_for_each_split(monkeypatch):
    def rarer(split: Split) -> Split:
        return Split(split.inputs[:8], split.targets[:8] % 3)

    made = bad_forms.splits(rarer, "validation", "test")
    monkeypatch.setattr(bad_forms, "task", lambda: made)
    assert loaded()[1] == [
        "the validation split has no sample of 1 of 4 classes: 3", "the test split has no sample of 1 of 4 classes: 3",
    ]  # fmt: skip


def test_inputs_of_one_number_are_a_note(monkeypatch):
    made = bad_forms.inputs(torch.ones_like)()
    monkeypatch.setattr(bad_forms, "task", lambda: made)
    assert loaded()[1] == ["every number in the training inputs is 1: nothing can be learned from them"]


def test_labels_that_a_loss_ignores_are_left_to_it_in_training(monkeypatch):
    made = bad_forms.targets(bad_forms.filled(-100), "train")()
    monkeypatch.setattr(bad_forms, "task", lambda: made)
    assert loaded()[1] == []


@pytest.mark.parametrize("change", [
    lambda x: x.requires_grad_(), nn.Parameter, lambda x: x.transpose(2, 3), lambda x: x[:, :, :1].expand_as(x),
    lambda x: x.half(), lambda x: x.double(), lambda x: x > 0.5, lambda x: torch.complex(x, x).conj().imag,
])  # fmt: skip
def test_inputs_of_unusual_form_that_mean_something_are_taken_and_come_back_equal(monkeypatch, change):
    made = bad_forms.inputs(change)()
    monkeypatch.setattr(bad_forms, "task", lambda: made)
    assert loaded()[1] == []
    copy = pickle.loads(pickle.dumps(made))
    assert torch.equal(copy.test.inputs, made.test.inputs)
    assert not made.test.inputs.requires_grad
    assert copy.fingerprint() == made.fingerprint()


def test_a_model_that_draws_random_numbers_and_uses_none_is_taken_and_the_generators_go_on_as_before():
    def forward(model: bad_forms.Net, x: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        np.random.rand()
        random.random()
        return model.head(model.features(x))

    model, task = bad_forms.with_forward(forward)(), bad_forms.task()
    before = generators()
    check_evaluation(model, task)
    assert generators() == before
    for draw in (random.random, np.random.rand, lambda: torch.rand(1)):
        before = generators()
        draw()
        assert generators() != before


def test_a_mask_of_infinities_is_no_fault():
    model = bad_forms.Net()
    model.register_buffer("mask", torch.full((3,), -torch.inf))
    check_values(model)
    model.register_buffer("mask", torch.full((3,), torch.nan))
    with pytest.raises(UnsupportedModel, match="3 of 3 numbers of mask are NaN"):
        check_values(model)
