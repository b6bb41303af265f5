"""Runs that are continued after what they began with has changed. Without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pfray.run import main
from pfray.workflow import finalize
from tests import userland
from tests.test_damages import RAW
from tests.without_ray import without_ray


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a run that ended when its files were to be written, with weights that the user gave."""
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    torch.save(userland.Regressor(4).state_dict(), tmp_path / "weights.pt")
    model = {**RAW["model"], "weights": str(tmp_path / "weights.pt")}
    return start(tmp_path, {**RAW, "model": model})


def start(tmp_path: Path, raw: dict) -> list[str]:
    path = tmp_path / "exp.yaml"
    path.write_text(yaml.safe_dump({**raw, "storage": str(tmp_path / "runs")}))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "model.packed")

    with without_ray(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(finalize, "pack", full)
        assert main([str(path)]) == 1
    return [str(path), "--resume"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that says why."""
    capsys.readouterr()
    with without_ray() as trained:
        assert main(arguments) == 2
    assert not trained
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "--force" in errors[0]
    return errors[0]


def test_other_weights_under_the_same_name_are_refused(begun, tmp_path, capsys):
    state = torch.load(tmp_path / "weights.pt")
    state["head.bias"] += 0.5
    torch.save(state, tmp_path / "weights.pt")
    assert "changed: the model's weights. Remedy" in refused(begun, capsys)


def test_another_forward_is_refused(begun, capsys, monkeypatch):
    monkeypatch.setattr(userland.F, "relu", torch.tanh)
    assert "changed: what the model gives for the first inputs (forward()" in refused(begun, capsys)


def test_other_data_are_refused(begun, capsys, monkeypatch):
    make = userland.brightness
    monkeypatch.setattr(userland, "brightness", lambda: make(330))
    assert "train data uint8 (110, 1, 16, 16), float32 (110, 1) instead of" in refused(begun, capsys)


def test_an_unchanged_run_goes_on_and_trains_nothing(begun):
    with without_ray() as trained:
        assert main(begun) == 0
    assert not trained


def test_a_trained_teacher_is_the_run_folders_own_where_the_cache_has_it_no_longer(tmp_path, monkeypatch):
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "first"))
    arguments = start(tmp_path, RAW)
    folder = tmp_path / "runs" / "exp"
    # As another machine would train it, whose last bits are others.
    kept = load_file(folder / "teacher.safetensors")
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "other"))
    for path in (folder / "training").glob("teacher*"):
        path.rename(path.with_name(f"gone{path.suffix}"))
    with without_ray() as trained:
        assert main(arguments) == 0
    assert not trained
    again = load_file(folder / "teacher.safetensors")
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert json.loads((folder / "summary.json").read_text())["trials"]["finished"] == 4
