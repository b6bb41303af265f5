"""CIFAR-100: labels, superclasses, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from pfray.data import cifar100
from pfray.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of every class to train on, one to test on; the first pixel is the class."""
    folder = tmp_path_factory.mktemp("cifar100")
    for part, each in (("train", 3), ("test", 1)):
        images, labels = [], [i % 100 for i in range(100 * each)]
        for label in labels:
            pixels = RNG.integers(0, 256, (32, 32, 3), np.uint8)
            pixels[0, 0] = label
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        rows = {"img": images, "fine_label": labels, "coarse_label": [0] * len(labels)}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{part}.parquet")
    return folder


def test_there_are_a_hundred_classes_in_twenty_superclasses() -> None:
    assert len(set(cifar100.NAMES)) == len(cifar100.NAMES) == 100
    assert {len(group) for group in cifar100.SUPERCLASSES.values()} == {5}
    # As in the data set's own list.
    assert [cifar100.NAMES[i] for i in (0, 1, 39, 47, 99)] == [
        "apple", "aquarium_fish", "keyboard", "maple_tree", "worm"
    ]  # fmt: skip


def test_images_have_their_fine_labels(folder: Path) -> None:
    task = cifar100.build(path=str(folder), validation_size=100)
    assert [len(split) for split in (task.train, task.validation, task.test)] == [200, 100, 100]
    assert task.num_outputs == 100
    assert (task.train.inputs[:, 0, 0, 0] == task.train.targets).all()


def test_a_superclass_is_its_five_classes(folder: Path) -> None:
    task = cifar100.build(path=str(folder), validation_size=100, superclass="fruit_and_vegetables")
    names = ("apple", "mushroom", "orange", "pear", "sweet_pepper")
    assert task.num_outputs == 5
    assert task.classes == tuple(cifar100.NAMES.index(name) for name in names)
    assert len(task.train) == 10
    for image, target in zip(task.test.inputs, task.test.targets, strict=True):
        assert cifar100.NAMES[image[0, 0, 0]] == names[target]


def test_unknown_names_are_refused_before_any_file_is_read() -> None:
    message = r"data.superclass: unknown superclass 'tree'. Did you mean 'trees'\? Allowed: aquatic_mammals, "
    with pytest.raises(ConfigError, match=message):
        cifar100.build(path="/nowhere", superclass="tree")
    with pytest.raises(ConfigError, match="Did you mean 'poppy'"):
        cifar100.build(path="/nowhere", classes=["rose", "popy"])
    with pytest.raises(ConfigError, match="both classes and superclass"):
        cifar100.build(classes=["rose", "poppy"], superclass="trees")
    with pytest.raises(DataError, match=r"/nowhere: no train\*.parquet. Remedy"):
        cifar100.build(path="/nowhere")
