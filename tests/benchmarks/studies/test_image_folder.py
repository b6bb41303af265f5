"""The folder of enlarged images, and the experiment over it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks.studies import image_folder
from pfray.config.schema import Experiment
from pfray.data import cifar10, digits


@pytest.fixture
def cifar(monkeypatch):
    """Digits in three channels in place of CIFAR-10's images."""
    monkeypatch.setattr(image_folder, "HELD", 5)
    task = digits.build()

    def coloured(split):
        return replace(split, inputs=split.inputs.expand(-1, 3, -1, -1).to(torch.uint8).contiguous())

    made = SimpleNamespace(**{name: coloured(getattr(task, name)) for name in ("train", "validation", "test")})
    monkeypatch.setattr(cifar10, "build", lambda data, validation_size: made)
    return made


def test_the_folder_holds_the_images_by_class_and_a_finished_one_is_kept(cifar, tmp_path):
    folder = image_folder.write_folder(tmp_path / "images", "", 20)
    assert [len(list((folder / split).rglob("*.jpg"))) for split in ("train", "val", "test")] == [20, 5, 5]
    label = cifar10.NAMES[int(cifar.train.targets[3])]
    with Image.open(folder / "train" / label / "000003.jpg") as image:
        assert image.size == (256, 256)
    image_folder.write_folder(folder, "", 30)
    assert len(list((folder / "train").rglob("*.jpg"))) == 20
    (folder / "ready").unlink()
    image_folder.write_folder(folder, "", 30)
    assert len(list((folder / "train").rglob("*.jpg"))) == 30


def test_the_experiment_is_one_that_runs(tmp_path):
    written = image_folder.experiment(tmp_path, tmp_path, 64, resources={"workers": 2})
    assert Experiment.model_validate({"name": "killed", **written}).resources.workers == 2


def test_how_far_a_training_is(tmp_path):
    assert image_folder.done(tmp_path / "running.json") == 0.0
    (tmp_path / "running.json").write_text('{"done": 1.4, "images_per_second": 3.0}', encoding="utf-8")
    assert image_folder.done(tmp_path / "running.json") == 1.4
