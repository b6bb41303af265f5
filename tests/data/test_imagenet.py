"""ImageNet: 1,000 classes, the published validation split as the test split, from folders, shards or the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch

from pfray.data import imagenet
from pfray.errors import ConfigError, DataError
from pfray.task import Task
from tests.pictures import encoded, epoch, make_folder, picture, write_parquet

NAMES = [f"n{number:08d}" for number in range(1000)]
DATA = [encoded(picture(label, 0)) for label in range(3)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "cache"))


def build(path: Path, **settings: Any) -> Task:
    return imagenet.build(**{"path": str(path), "size": 8, "validation_size": 1000, **settings})


def shards(root: Path, classes: int = 1000, names: list[str] | None = NAMES, test: bool = True) -> Path:
    """As on the hub: the test split's labels are all -1. Each shard has every class."""
    for number in range(3):
        samples = [(DATA[label % 3], label) for label in range(classes)]
        write_parquet(root / "data" / f"train-{number:05d}-of-00003.parquet", samples, names=names)
    write_parquet(root / "data" / "validation-00000-of-00001.parquet", samples, names=names)
    if test:
        hidden = [(data, -1) for data, _ in samples[:5]]
        write_parquet(root / "data" / "test-00000-of-00001.parquet", hidden)
    return root


def test_the_published_validation_is_the_test_and_validation_is_held_out_of_train(tmp_path):
    for split, count in (("train", 3), ("val", 1)):
        for label, name in enumerate(NAMES):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / split / name / f"{name}_{number}.JPEG").write_bytes(DATA[label % 3])
    task = build(tmp_path)
    assert [len(split) for split in (task.train, task.validation, task.test)] == [2000, 1000, 1000]
    assert task.num_outputs == 1000
    labels = torch.cat([labels for _, labels in task.validation.batches(250)])
    assert labels.bincount(minlength=1000).tolist() == [1] * 1000  # stratified
    assert labels[:10].tolist() != sorted(labels[:10].tolist())

    part = build(tmp_path, classes=[NAMES[7], NAMES[3]], validation_size=2)
    assert part.classes == (7, 3)
    assert len(part.train) == 4


def test_the_hidden_labels_of_the_test_split_are_left_alone(tmp_path):
    task = build(shards(tmp_path))
    assert [len(split) for split in (task.train, task.validation, task.test)] == [2000, 1000, 1000]
    assert build(tmp_path, limit_train=10, metric="top5").metric_name == "top5"


def test_other_numbers_of_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"data: has 3 classes, and 1000 are expected\. Remedy: another data.path, or "
                                        r"data.name=imagefolder"):  # fmt: skip
        build(make_folder(tmp_path / "data", {"train": 2, "val": 1}))
    with pytest.raises(DataError, match="has 12 classes, and 1000 are expected"):
        build(shards(tmp_path / "shards", classes=12, names=None, test=False))
    with pytest.raises(ConfigError, match="neither path nor hub is given"):
        imagenet.build()
    with pytest.raises(DataError, match="/nowhere: no such folder"):
        imagenet.build("/nowhere")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """A function that sets what the hub answers: the builder of a data set, or an error."""

    def answer(found: Any) -> None:
        def load_dataset_builder(name: str) -> Any:
            assert name == "ILSVRC/imagenet-1k"
            if isinstance(found, Exception):
                raise found
            return SimpleNamespace(config=SimpleNamespace(data_files=found))

        monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)

    return answer


def test_the_hubs_shards_are_streamed(tmp_path, hub):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(shards(tmp_path)) + "/", "/imagenet/", recursive=True)
    files = {"train": [f"memory://imagenet/data/train-{number:05d}-of-00003.parquet" for number in range(3)],
             "validation": ["memory://imagenet/data/validation-00000-of-00001.parquet"],
             "test": ["memory://imagenet/data/test-00000-of-00001.parquet"]}  # fmt: skip
    hub(files)
    task = imagenet.build(hub="ILSVRC/imagenet-1k", size=8, validation_size=500)
    assert [len(split) for split in (task.train, task.validation, task.test)] == [2000, 1000, 1000]
    assert task.num_outputs == 1000
    (first, _), *_ = ((labels.tolist(), images) for images, labels in epoch(task.train, 50, 0))
    assert len(set(first)) > 25
    memory.rm("/imagenet", recursive=True)


@pytest.mark.parametrize(("error", "words"), [
    (datasets.exceptions.DatasetNotFoundError("Dataset is a gated dataset"), "or it may not be read"),
    (ConnectionError("no route"), r"cannot be read \(no route\). Remedy: HF_TOKEN, or give data.path"),
])  # fmt: skip
def test_a_hub_that_refuses_is_one_line(hub, error, words):
    hub(error)
    with pytest.raises(DataError, match=words) as caught:
        imagenet.build(hub="ILSVRC/imagenet-1k")
    assert "'ILSVRC/imagenet-1k' on the Hugging Face hub" in str(caught.value)
    assert "\n" not in str(caught.value)
