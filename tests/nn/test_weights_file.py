"""Files of weights that hold more than tensors: harmless objects are read, whole models and code are refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pfray.errors import WeightsError
from pfray.nn.weights_file import read


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read("the file", path)
    assert str(caught.value).isprintable()  # torch colours its messages
    assert str(caught.value).endswith("Remedy: save it again with torch.save(model.state_dict(), path)")
    return str(caught.value)


def test_what_training_scripts_keep_beside_the_weights_is_read(tmp_path):
    beside = {
        "args": argparse.Namespace(lr=0.1, path=Path("/data")), "best": np.float64(91.5), "curve": np.arange(3.0),
        "epoch": 5,
    }  # fmt: skip
    torch.save({"model": {"a": torch.ones(2)}, **beside}, tmp_path / "w.pt")
    content = read("the file", tmp_path / "w.pt")
    assert content["model"]["a"].tolist() == [1.0, 1.0]
    assert (content["args"].lr, content["best"], content["curve"].tolist()) == (0.1, 91.5, [0.0, 1.0, 2.0])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_pickled_model_is_refused_with_its_class(tmp_path, zipped):
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    text = refusal(tmp_path / "w.pt")
    assert "the file holds objects besides tensors (torch.nn.modules." in text
    assert "as torch.save(model, path) has it" in text


def test_torchscript_is_named(tmp_path):
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(nn.Sequential(nn.Linear(2, 2))).save(tmp_path / "w.pt")
    assert refusal(tmp_path / "w.pt").startswith("the file is not a readable state-dict file (TorchScript).")
