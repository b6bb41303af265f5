"""Every file of a run folder, damaged in every way: it is made again, or named in one line before anything is done."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import pfray
from pfray.errors import StorageError
from pfray.run import main
from pfray.storage.run_folder import RunFolder
from pfray.training import checkpoints
from tests.without_ray import without_ray

RAW = {
    "model": {"factory": "tests.userland:Regressor", "hidden": 4}, "data": {"factory": "tests.userland:brightness"},
    "learner": "weight_sparse", "target": {"sparsity": 0.5}, "teacher": {"epochs": 2, "batch_size": 32},
    "finetune": {"epochs": 2, "lr": 0.02, "batch_size": 32}, "export": {"tflite": False},
    "search": {"name": "random", "trials": 4, "baselines": ["uniform"]},
}  # fmt: skip
FOREIGN = '{"trial": "x", "epoch": "x", "loss": "x", "score": "x"}\n["x"]\nno json\n{"epoch": 9, "loss": 1.0}\n'


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def _flipped(path: Path, share: float, count: int = 1) -> None:
    content = bytearray(path.read_bytes())
    first = int(share * (len(content) - 1))
    for place in range(first, min(first + count, len(content))):
        content[place] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "a directory": _directory,
    "a list": lambda path: path.write_text("[]"),
    "an object": lambda path: path.write_text("{}"),
    "texts": lambda path: path.write_text('{"load": "x", "epoch": "x", "teacher": {"accuracy": "x"}}'),
    "bad YAML": lambda path: path.write_text("a: [b\n\tc: '"),
    "foreign lines": lambda path: path.write_bytes(path.read_bytes() + FOREIGN.encode()),
    "a state of another kind": lambda path: torch.save(["x"], path),
    "flipped early": lambda path: _flipped(path, 0.1),
    # More bytes than torch's archives leave empty between two tensors.
    "flipped in the middle": lambda path: _flipped(path, 0.5, 100),
    "flipped late": lambda path: _flipped(path, 0.9),
}
# What is read when this run is continued, so that what is wrong with it is said.
SAID = {"experiment.yaml", "identity.json", "seconds.json", "teacher.safetensors", "training/uniform.safetensors",
        "training/compressed/state.pt"}  # fmt: skip
# A byte may be one that nothing is read from, and lines after its end do nothing to an archive.
HARMLESS = ("flipped early", "flipped late", "foreign lines")
# Written and never read.
WRITTEN = ("events", "tune")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damages") / "exp.yaml"
    path.write_text(yaml.safe_dump(RAW))
    return path


@pytest.fixture(scope="module")
def half_finished(experiment: Path) -> Path:
    """The folder of a run that ended after the first epoch of its last training."""
    save, storage = checkpoints.save, experiment.parent / "half"

    def save_once(path: Path, state: dict[str, Any]) -> None:
        if path.parent.name == "compressed" and state["epoch"] == 2:
            raise StorageError("the disk is full")
        save(path, state)

    with without_ray(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save", save_once)
        assert main([str(experiment), f"storage={storage}"]) == 1
    return storage / "exp"


@pytest.fixture(scope="module")
def finished(experiment: Path, half_finished: Path) -> Path:
    """The folder of that run, continued as it is."""
    return resume(experiment, half_finished, experiment.parent / "finished")[2]


def resume(experiment: Path, folder: Path, storage: Path, damage: Callable[[Path], Any] | None = None,
           file: str = "") -> tuple[int, list[str], Path]:  # fmt: skip
    """(exit code, the trainings that it took, the folder) of a copy of the run, damaged and then continued."""
    copy = Path(shutil.copytree(folder, storage / "exp"))
    if damage is not None:
        damage(copy / file)
    with without_ray() as trained:
        code = main([str(experiment), f"storage={storage}", "--resume"])
    return code, trained, copy


def files(folder: Path) -> list[str]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in names if not name.startswith(WRITTEN)]


def result(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in summary.items() if key not in ("seconds", "own_seconds")}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else pfray.load(path)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The lines that warn, of the log, the output and the errors."""

    def lines() -> list[str]:
        shown = capsys.readouterr()
        return [*(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING), *shown.out.splitlines(),
                *shown.err.splitlines()]  # fmt: skip

    return lines


def check(code: int, trained: list[str], copy: Path, lines: list[str], file: str, reference: dict[str, Any]) -> None:
    assert not any("Traceback" in line for line in lines)
    if code == 0:
        assert result(copy) == reference
        return
    assert not trained
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert Path(file).name in errors[0]
    assert "Remedy: " in errors[0]


def test_a_half_finished_run_has_what_is_damaged_here(half_finished):
    assert set(files(half_finished)) >= SAID | {"search/trials.jsonl", "training/compressed/curve.jsonl"}
    assert not (half_finished / "training/compressed.safetensors").exists()


def test_a_whole_run_is_continued_with_its_last_training_only(experiment, half_finished, tmp_path):
    code, trained, copy = resume(experiment, half_finished, tmp_path)
    assert (code, trained) == (0, ["compressed"])
    epochs = [json.loads(line)["epoch"] for line in (copy / "training/compressed/curve.jsonl").read_text().splitlines()]
    assert epochs == [1, 2]


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_file_of_a_half_finished_run_is_made_again_or_named(
    experiment, half_finished, finished, tmp_path, said, caplog, damage
):
    reference = result(finished)
    for number, file in enumerate(files(half_finished)):
        said()
        caplog.clear()
        code, trained, copy = resume(experiment, half_finished, tmp_path / str(number), DAMAGES[damage], file)
        lines = said()
        check(code, trained, copy, lines, file, reference)
        if file in SAID and (copy / file).is_file() and damage not in HARMLESS:
            assert any(Path(file).name in line for line in lines), (file, lines)
        assert set(trained) <= {"compressed", Path(file).stem}


@pytest.mark.parametrize("damage", ["halved", "emptied", "a directory", "an object", "texts", "flipped in the middle"])
def test_each_file_of_a_finished_run_is_made_again_or_named(experiment, finished, tmp_path, said, damage):
    reference = result(finished)
    for number, file in enumerate(files(finished)):
        if file.startswith("training/") or file == "report.html":
            continue
        said()
        code, trained, copy = resume(experiment, finished, tmp_path / str(number), DAMAGES[damage], file)
        lines = said()
        check(code, trained, copy, lines, file, reference)
        assert not trained
        if code == 0:
            assert files(copy) == files(finished)
            assert any(Path(file).name in line for line in lines) or file == "seconds.json", (file, lines)
            assert RunFolder(copy).find_damage() is None
            if file.endswith((".safetensors", ".packed")):
                one, other = (tensors(folder / file) for folder in (copy, finished))
                assert one.keys() == other.keys()
                assert all(torch.equal(one[name], other[name]) for name in other)


def test_folders_in_the_place_of_files_and_the_other_way_round_are_named(experiment, half_finished, tmp_path, said):
    for number, name in enumerate(("search", "training", "events", "training/compressed")):
        said()

        def damage(path: Path) -> None:
            shutil.rmtree(path)
            path.write_text("x")

        code, trained, copy = resume(experiment, half_finished, tmp_path / str(number), damage, name)
        check(code, trained, copy, said(), name, {})
        assert code in (1, 2)
