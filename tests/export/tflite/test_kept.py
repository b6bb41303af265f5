"""The original network's file is converted once and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pfray.export.tflite import convert
from pfray.export.tflite.kept import teacher_file
from tests.userland import Regressor, brightness


@pytest.fixture
def conversions(monkeypatch, tmp_path) -> list[Path]:
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path))
    made: list[Path] = []

    def export(model, example, path):
        made.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a file")

    monkeypatch.setattr(convert, "export", export)
    return made


def test_a_model_is_converted_once_and_other_weights_are_another_model(conversions):
    torch.manual_seed(0)
    model, other, task = Regressor().eval(), Regressor().eval(), brightness()
    first = teacher_file(model, task)
    assert teacher_file(model, task) == first
    assert conversions == [first]
    assert teacher_file(other, task) != first
    assert len(conversions) == 2


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"half"), Path.unlink])
def test_a_damaged_file_is_made_again(conversions, damage):
    model, task = Regressor().eval(), brightness()
    path = teacher_file(model, task)
    damage(path)
    assert teacher_file(model, task).read_bytes() == b"a file"
    assert conversions == [path, path]
