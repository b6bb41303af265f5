from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pfray import export
from pfray.errors import ExportError, StorageError
from pfray.export import pt2
from pfray.models.lenet import lenet
from pfray.nn.modes import evaluating


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else x + 1


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, -1)


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2))


@pytest.mark.parametrize("build", [lambda: lenet(10, 1), with_dropout], ids=["lenet", "dropout"])
def test_the_program_gives_the_models_outputs_for_any_batch_size(build: type[nn.Module], tmp_path: Path) -> None:
    model, side = build(), 32 if build is not with_dropout else 8
    size = pt2.save(model, torch.zeros(1, 1, side, side), tmp_path / "model.pt2")
    assert size == (tmp_path / "model.pt2").stat().st_size
    assert model.training, "the model itself must stay as it is"
    loaded = export.load(tmp_path / "model.pt2")
    for count in (1, 2, 5):
        inputs = torch.randn(count, 1, side, side)
        with evaluating(model), evaluating(loaded):
            torch.testing.assert_close(loaded(inputs), model(inputs), rtol=0, atol=1e-6)


def test_the_program_stays_in_evaluation_mode(tmp_path: Path) -> None:
    pt2.save(with_dropout(), torch.zeros(1, 1, 8, 8), tmp_path / "model.pt2")
    loaded = pt2.load(tmp_path / "model.pt2")
    inputs = torch.randn(4, 1, 8, 8)
    expected = loaded(inputs)
    assert loaded.train() is loaded
    assert loaded.eval() is loaded
    assert not loaded.training
    assert torch.equal(loaded(inputs), expected)


@pytest.mark.parametrize("model", [Branching(), FixedBatch()], ids=["branch", "batch"])
def test_a_model_that_cannot_be_traced_is_named_and_leaves_no_file(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"{type(model).__name__} cannot be exported.*Remedy"):
        pt2.save(model, torch.zeros(1, 1, 4, 4), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"hello", "cut"], ids=["missing", "empty", "text", "cut"])
def test_a_damaged_file_is_named_with_a_remedy(content: bytes | str | None, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    if content == "cut":
        pt2.save(lenet(10, 1), torch.zeros(1, 1, 32, 32), path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.pt2.*Remedy"):
        pt2.load(path)


def test_a_full_disk_is_a_storage_error_that_names_the_file(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"m.pt2 cannot be written \(No space left on device\)"):
        pt2.save(nn.Linear(2, 2), torch.ones(1, 2), tmp_path / "m.pt2")
