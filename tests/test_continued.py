"""Runs that are continued after what they began with has changed. Without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pfray.run import main
from pfray.storage import identity
from pfray.storage.run_lock import locked
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


def test_an_unchanged_run_goes_on_says_with_what_and_trains_nothing(begun, tmp_path, capsys):
    capsys.readouterr()
    with without_ray() as trained:
        assert main(begun) == 0
    assert not trained
    note = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("note: "))
    assert note.startswith(f"note: {tmp_path}/runs/exp continues, with the teacher, 4 trials, ")
    assert note.endswith(", the training of compressed, uniform")


def test_a_resumed_run_that_is_not_there_begins_and_says_so(begun, tmp_path, capsys):
    capsys.readouterr()
    with without_ray():
        assert main([*begun, "name=other"]) == 0
    assert f"note: {tmp_path}/runs/other holds no run yet; a new one begins\n" in capsys.readouterr().out
    with without_ray():
        assert main([*begun, "name=exps"]) == 0
    assert "runs/exps holds no run yet; a new one begins. Did you mean 'exp'?\n" in capsys.readouterr().out


def test_a_finished_run_is_looked_at_without_its_data(begun, tmp_path, capsys, monkeypatch):
    def gone() -> None:
        raise FileNotFoundError(2, "No such file or directory", "data/brightness")

    with without_ray():
        assert main(begun) == 0
        before = (tmp_path / "runs" / "exp" / "summary.json").read_bytes()
        (tmp_path / "runs" / "exp" / "report.html").unlink()
        monkeypatch.setattr(userland, "brightness", gone)
        capsys.readouterr()
        assert main(begun) == 0
        shown = capsys.readouterr().out
        assert f"{tmp_path}/runs/exp is finished already; its report is {tmp_path}/runs/exp/report.html" in shown
        assert "changed since" not in shown
        assert (tmp_path / "runs" / "exp" / "summary.json").read_bytes() == before
        assert (tmp_path / "runs" / "exp" / "report.html").exists()
        assert main([*begun, "seed=5"]) == 2
        assert "these differ: seed (5 instead of 0)" in capsys.readouterr().err


def test_what_has_changed_since_a_finished_run_is_said(begun, capsys, monkeypatch):
    with without_ray():
        assert main(begun) == 0
        capsys.readouterr()
        monkeypatch.setattr(identity, "_code_key", lambda _: "other")
        assert main(begun) == 0
    assert "note: changed since that run: the code of tests.userland\n" in capsys.readouterr().out


def test_a_run_in_use_is_told_before_anything_is_loaded(begun, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pfray.run.load_experiment", lambda *_: pytest.fail("it was loaded"))
    with locked(tmp_path / "runs" / "exp", "the run"):
        assert "exp is in use by another process. Remedy: wait for it" in refused_at_once(begun, capsys)


def refused_at_once(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


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
