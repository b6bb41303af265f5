"""Learners of a user's own whose results are of another kind: each is one line that names the mistake."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from pfray.errors import ConfigError
from pfray.learner.base import Algorithm, Compressed
from pfray.learner.build import compress_candidate
from pfray.learner.context import Context, Recipe
from pfray.run import main
from pfray.space import CompressionSpace, Knob
from pfray.training.settings import Training
from pfray.workflow.learner_check import check_curves
from tests.small import chain, make_task

SPACE = CompressionSpace((Knob("a", 0.9, 0.0), Knob("b", 0.9, 0.0)), lambda values: {"sparsity": float(values.mean())})
MINE = """
import copy

import numpy as np
from torch import nn

from pfray.learner.base import Algorithm, Compressed
from pfray.space import CompressionSpace, Knob


class Mine(Algorithm):
    def space(self):
        return CompressionSpace((Knob("a", 0.9, 0.0),), lambda values: {"sparsity": float(values[0])})

    def compress(self, plan, steps=0):
        return Compressed(copy.deepcopy(self.model))


class NoSpace(Algorithm):
    pass


class CostsOfAnotherKind(Mine):
    def space(self):
        return CompressionSpace((Knob("a", 0.9, 0.0),), lambda values: 3)


class NotASpace(Mine):
    def space(self):
        return []


class GivesTheModel(Mine):
    def compress(self, plan, steps=0):
        return self.model


class Broken(Mine):
    def compress(self, plan, steps=0):
        return plan["c"]


class OtherStructure(Mine):
    def rebuild(self, structure):
        return nn.Linear(1, 1)


class Backwards(Mine):
    has_error_curves = True

    def error_curves(self):
        return {"a": np.array([0.0, 0.5, 1.0])}
"""


@pytest.mark.parametrize(("curves", "message"), [
    ({"a": [0.0, 1.0]}, r"learner: the error curve of 'a' rises from 0 to 1\. Remedy: begin with the error at"),
    ({"a": [1.0]}, r"'a' is no row of two or more finite numbers"),
    ({"a": [1.0, float("nan")]}, r"'a' is no row of two or more finite numbers"),
    ({"a": ["many", "few"]}, r"'a' is no row of two or more finite numbers"),
    ({"c": [1.0, 0.0]}, r"error_curves belong to no knob, such as 'c'"),
])  # fmt: skip
def test_error_curves_of_another_form_are_refused(curves, message):
    with pytest.raises(ConfigError, match=message):
        check_curves(curves, SPACE)


def test_error_curves_that_fall_or_stay_pass():
    check_curves({"a": np.array([1.0, 0.2, 0.0]), "b": np.zeros(3), "a group that is left whole": np.zeros(2)}, SPACE)
    check_curves({}, SPACE)


def test_a_compress_that_gives_a_model_is_told_what_to_give():
    class Bare(Algorithm):
        def compress(self, plan, steps=0):
            return copy.deepcopy(self.model)

    class Empty(Algorithm):
        def compress(self, plan, steps=0):
            return Compressed(None)

    context = Context(make_task(), chain())
    for algorithm, found in ((Bare, "a Sequential"), (Empty, r"a Compressed\(NoneType\)")):
        candidate = Recipe(algorithm, None, Training()).candidate({})
        with pytest.raises(ConfigError, match=rf"compress returned {found}\. Remedy: return Compressed\(model, hook\)"):
            compress_candidate(candidate, context, torch.device("cpu"), 0)


@pytest.mark.parametrize(("name", "message"), [
    ("NoSpace", "learner: NoSpace has no space. Remedy: def space(self): ... in the class"),
    ("CostsOfAnotherKind", "learner: mine_wrong:CostsOfAnotherKind: the costs of its space are a int, not numbers by"),
    ("NotASpace", "learner: mine_wrong:NotASpace: space returned a list, not a CompressionSpace"),
    ("GivesTheModel", "learner: GivesTheModel.compress returned a "),
    ("Broken", "learner: mine_wrong:Broken: KeyError: "),
    ("OtherStructure", "learner: OtherStructure.rebuild and OtherStructure.compress give models of different"),
    ("Backwards", "learner: the error curve of 'a' rises from 0 to 1"),
])  # fmt: skip
def test_check_tries_a_plan_and_says_what_is_wrong_in_one_line(tmp_path: Path, monkeypatch, capsys, name, message):
    (tmp_path / "mine_wrong.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "exp.yaml"
    path.write_text(
        f"model: lenet\ndata: digits\nlearner: mine_wrong:{name}\n"
        f"target: {{sparsity: 0.5}}\nstorage: {tmp_path}/runs\n"
    )
    assert main([str(path), "--check"]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {message}")
    assert not (tmp_path / "runs").exists()


def test_check_tries_a_pipeline_whose_last_model_has_another_form_than_in_trials(tmp_path: Path, capsys):
    path = tmp_path / "exp.yaml"
    path.write_text(
        "model: lenet\ndata: digits\n"
        "learner: [{name: channel_pruned, images: 100}, {name: litert_quant, images: 100}]\n"
        f"target: {{macs: 0.5x, bits: 8}}\nstorage: {tmp_path}/runs\n"
    )
    assert main([str(path), "--check"]) == 0
    assert "exp is valid: 9 knobs" in capsys.readouterr().out
