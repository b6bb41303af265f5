"""Data as the workers of a run get them."""

from __future__ import annotations

from dataclasses import replace

import datasets
import pytest
import torch
from ray import cloudpickle
from torch.utils.data import Dataset, IterableDataset, default_collate

from pfray.data import _workers
from pfray.data._loaders import streamed
from pfray.data._stream import Stream
from pfray.data._workers import Calibration, for_trials, read_by
from pfray.errors import DataError
from pfray.task import Split, Task


class Files(Dataset):
    """Small images, with a path for each."""

    def __init__(self, count: int) -> None:
        self.paths = [f"/data/images/train/class_{index % 4}/image_{index:08d}.jpg" for index in range(count)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 4, 4), index % 251, dtype=torch.uint8), index % 4


class InOrder(IterableDataset):
    def __len__(self) -> int:
        return 12

    def __iter__(self):
        return iter([(torch.zeros(1), index % 2) for index in range(12)])


def stream(data: object) -> Stream:
    return streamed("train", data, tuple, 0, default_collate)


def task(train: int = 2000, validation: int = 300) -> Task:
    parts = {"train": stream(Files(train)), "validation": stream(Files(validation)), "test": stream(Files(300))}
    return Task("files", **parts, num_outputs=4)


def test_a_trial_is_sent_as_many_bytes_for_any_number_of_training_images():
    sizes = [len(cloudpickle.dumps(for_trials(task(count), 1000, 64, 200))) for count in (2000, 20_000)]
    whole = [len(cloudpickle.dumps(task(count))) for count in (2000, 20_000)]

    assert abs(sizes[1] - sizes[0]) < 50
    assert sizes[0] < 1000 * (16 + 8) + 200 * (16 + 8) + 10_000
    assert whole[1] > 5 * whole[0]


def test_a_trial_has_the_first_samples_in_memory():
    whole = task()
    seen = for_trials(whole, 1000, 64, 200)

    assert [type(part) for part in (seen.train, seen.validation, seen.test)] == [Calibration, Split, Split]
    assert (len(seen.train), len(seen.validation)) == (1000, 200)
    assert torch.equal(seen.train.head(500).inputs, whole.train.head(500).inputs)
    assert torch.equal(seen.train.head(2).inputs, whole.train.head(2).inputs)
    assert torch.equal(seen.validation.head(200).targets, whole.validation.head(200).targets)
    assert sum(len(targets) for batches in seen.train.epochs(64, [0]) for _, targets in batches) == 15 * 64


def test_more_samples_than_a_trial_has_are_an_error():
    split = cloudpickle.loads(cloudpickle.dumps(for_trials(task(), 100, 0, 200).train))
    assert len(split.head(100)) == 100
    with pytest.raises(DataError, match="a trial has the first 100 of 2000 training samples, and 101 are asked for"):
        split.head(101)
    small = for_trials(task(60), 100, 0, 200).train
    assert len(small.head(101)) == 60
    assert len(small.head(None)) == 60


def test_samples_that_a_data_set_leaves_out_are_missing_in_a_trial_and_no_error():
    def odd(samples):
        return default_collate([sample for sample in samples if sample[1] != 3])

    left = replace(stream(Files(2000)), collate=odd)
    split = cloudpickle.loads(cloudpickle.dumps(for_trials(replace(task(), train=left), 100, 0, 200).train))
    assert len(split) == len(split.head(100)) == len(left.head(100))
    assert len(split) < 100
    with pytest.raises(DataError, match="the first 100 of 2000 training samples, and 101 are asked for"):
        split.head(101)


def test_fine_tuning_gets_the_samples_of_its_steps_where_there_is_room(monkeypatch):
    assert len(for_trials(task(), 100, 1500, 200).train) == 1500
    monkeypatch.setattr(_workers, "ROOM", 300 * 24)  # 16 bytes of image and 8 of target
    assert len(for_trials(task(), 100, 1500, 200).train) == 300
    assert len(for_trials(task(), 500, 1500, 200).train) == 500


def test_all_validation_samples_are_in_memory_where_there_is_room(monkeypatch):
    assert len(for_trials(task(), 100, 0, None).validation) == 300
    assert isinstance(for_trials(task(), 100, 0, None).validation, Split)
    monkeypatch.setattr(_workers, "ROOM", 200 * 24)
    left = for_trials(task(), 100, 0, None).validation
    assert isinstance(left, Stream)
    assert sum(len(targets) for _, targets in left.batches(50)) == 300


def test_splits_in_memory_stay_as_they_are():
    split = Split(torch.zeros(8, 1), torch.arange(8) % 2)
    whole = Task("small", split, split, split, 2)
    assert for_trials(whole, 4, 4, 4) is whole
    assert read_by(whole, 3, 2) == (whole, [])


def test_the_setting_replaces_the_processes_of_all_streams():
    whole = task()
    shared = replace(whole, test=whole.validation)
    changed, remarks = read_by(shared, 3, 1)

    assert remarks == []
    assert [part.loaders for part in (changed.train, changed.validation, changed.test)] == [3, 3, 3]
    assert changed.test is changed.validation
    assert read_by(shared, None, 1)[0] is shared


def test_it_is_said_where_all_workers_read_everything():
    whole = replace(task(), train=stream(InOrder()))
    (remark,) = read_by(whole, None, 2)[1]
    assert "each of the 2 workers reads all of the training data" in remark
    assert read_by(whole, None, 1)[1] == []
    rows = datasets.IterableDataset.from_generator(_rows, gen_kwargs={"files": [0, 1]}).with_format("torch")
    data = streamed("train", rows, lambda b: (b["x"].float()[:, None], b["y"]), 0, default_collate, length=6)
    assert read_by(replace(whole, train=data), None, 2)[1] == []


def _rows(files):
    for _ in files:
        yield from ({"x": index, "y": index % 2} for index in range(3))
