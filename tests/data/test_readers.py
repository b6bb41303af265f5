"""Batches that processes read ahead: the same as without them, for any number of processes and of workers."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from pfray.data import _readers
from pfray.data._loaders import streamed
from pfray.data._stream import Stream
from pfray.errors import DataError


class Noisy(Dataset):
    """Sample i: i, and a number drawn by each of the three generators. read: the samples read in this process."""

    def __init__(self, count: int = 22) -> None:
        self.count, self.read, self.epochs = count, [], []

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.read.append(index)
        return torch.tensor([index, torch.rand(()).item(), np.random.rand(), random.random(), len(self.epochs)]), 0


def stream(data: object, loaders: int = 0, **settings: object) -> Stream:
    return replace(streamed("train", data, tuple, 0, default_collate, **settings), loaders=loaders)


def epochs(whole: Stream, size: int, seeds: list[int], rank: int = 0, world: int = 1) -> list[list[torch.Tensor]]:
    return [[inputs for inputs, _ in batches] for batches in whole.epochs(size, seeds, rank, world)]


def same(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> bool:
    return [[b.tolist() for b in batches] for batches in one] == [[b.tolist() for b in batches] for batches in other]


def processes() -> int:
    gc.collect()
    return len(multiprocessing.active_children())


@pytest.mark.parametrize("loaders", [1, 3])
def test_the_epochs_and_their_random_changes_are_those_of_a_single_process(loaders):
    wanted, found = (epochs(stream(Noisy(), n), 4, [5, 6, 7]) for n in (0, loaders))

    assert [len(batches) for batches in found] == [5, 5, 5]
    assert same(found, wanted)
    assert not same(found[:1], found[1:2])
    assert processes() == 0


def test_workers_together_read_the_batches_of_one_with_the_same_random_changes():
    (whole,) = epochs(stream(Noisy()), 6, [3])
    for world in (2, 3):
        parts = [epochs(stream(Noisy()), 6, [3], rank, world)[0] for rank in range(world)]
        for index, batch in enumerate(whole):
            together = torch.stack([part[index] for part in parts], 1).flatten(0, 1)
            assert torch.equal(together, batch)


def test_a_worker_reads_no_sample_of_another():
    seen = []
    for rank in (0, 1):
        data = Noisy(22)
        epochs(stream(data), 6, [3], rank, 2)
        seen.append(data.read)
    (whole,) = epochs(stream(Noisy(22)), 6, [3])
    ids = [int(index) for batch in whole for index in batch[:, 0]]

    assert len(ids) == 18  # three whole batches of six; four samples are left over, for one worker as for two
    assert seen[0] == ids[0::2]
    assert seen[1] == ids[1::2]


def test_a_data_set_with_epochs_of_its_own_hears_of_each_in_every_process():
    for loaders in (0, 2):
        found = epochs(stream(Noisy(), loaders), 4, [5, 6])
        assert {number for batch in found[0] for number in batch[:, 4].tolist()} == {1.0}
        assert {number for batch in found[1] for number in batch[:, 4].tolist()} == {2.0}


def test_what_the_collate_function_draws_is_repeated():
    def mixed(samples):
        inputs, targets = default_collate(samples)
        return inputs + np.random.rand(), targets

    made = [epochs(stream(DataLoader(Noisy(), 4, collate_fn=mixed), n), 4, [1]) for n in (0, 2)]
    assert same(*made)
    assert not same(made[0], epochs(stream(Noisy()), 4, [1]))


def test_evaluation_and_head_are_the_same_with_processes():
    data = Noisy(100)
    for loaders in (1, 2):
        whole = stream(data, loaders)
        assert same([[x for x, _ in whole.batches(30)]], [[x for x, _ in stream(data).batches(30)]])
        assert torch.equal(whole.head(70).inputs, stream(data).head(70).inputs)
    assert processes() == 0


def test_the_processes_end_when_an_epoch_is_left_early():
    whole = stream(Noisy(), 2)
    read = whole.epochs(4, [1, 2, 3])
    next(next(read))
    assert processes() == 2
    read.close()
    assert processes() == 0


def test_the_generators_of_the_training_are_left_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    for loaders in (0, 1):
        torch.manual_seed(5)
        epochs(stream(Noisy(), loaders), 4, [1, 2])
        assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("loaders", [0, 1])
def test_an_error_in_a_process_is_one_line_with_its_place(loaders):
    class Broken(Noisy):
        def __getitem__(self, index):
            raise KeyError("no such image")

    words = r"^the train data cannot be read: KeyError.*test_readers.py, line \d+"
    with pytest.raises(DataError, match=words) as error:
        epochs(stream(Broken(), loaders), 4, [1])
    assert "\n" not in str(error.value)
    assert processes() == 0


def test_a_data_error_of_the_data_set_is_itself():
    class Damaged(Noisy):
        def __getitem__(self, index):
            raise DataError(f"{index}.jpg is damaged. Remedy: copy it again")

    for loaders in (0, 1):
        with pytest.raises(DataError, match=r"^\d+\.jpg is damaged. Remedy: copy it again$"):
            epochs(stream(Damaged(), loaders), 4, [1])


@pytest.mark.parametrize("loaders", [1, 3])
def test_a_process_that_dies_is_one_line_and_the_others_end(loaders):
    class Dying(Noisy):
        def __getitem__(self, index):
            if index == 7:
                os._exit(3)
            return super().__getitem__(index)

    # Torch tells it as an error of the process, or of the pipe to it.
    with pytest.raises(DataError, match=r"^the train data cannot be read: a process that reads ahead has failed "
                                        r"\(.*\)\. Remedy: .*fewer resources\.loaders") as error:  # fmt: skip
        epochs(stream(Dying(), loaders), 4, [1, 2])
    assert processes() == 0  # though the error is still there
    assert "\n" not in str(error.value)


def test_a_part_of_a_data_set_is_read_sample_by_sample():
    part = Subset(Noisy(30), range(3, 25))
    assert not _readers.reads_many(part)
    (whole,), *halves = (epochs(stream(part), 6, [3], rank, world) for rank, world in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(whole[0][1::2], halves[1][0][0])


def test_several_samples_at_once_are_read_so():
    table = datasets.Dataset.from_dict({"x": list(range(20)), "y": [0] * 20}).with_format("torch")
    whole = streamed("train", table, lambda batch: (batch["x"], batch["y"]), 0, default_collate)
    assert _readers.reads_many(table)
    assert sorted(int(x) for (batch,) in epochs(whole, 20, [1]) for x in batch) == list(range(20))


@pytest.mark.parametrize(("gpu", "threads", "loaders"), [(True, 12, 12), (True, 64, 16), (False, 12, 6), (False, 1, 0)])
def test_the_number_by_default_comes_from_the_processors(monkeypatch, gpu, threads, loaders):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert replace(stream(Noisy()), loaders=None).used_loaders(gpu) == loaders
    assert stream(Noisy(), 3).used_loaders(gpu) == 3


def rows(files):
    for file in files:
        for index in range(10):
            yield {"x": 100 * file + index, "y": 0}


def shards(count: int, loaders: int = 0) -> Stream:
    data = datasets.IterableDataset.from_generator(rows, gen_kwargs={"files": list(range(count))}).with_format("torch")
    whole = streamed("train", data, lambda b: (b["x"], b["y"]), 0, default_collate, length=10 * count)
    return replace(whole, loaders=loaders)


def ids(found: list[list[torch.Tensor]]) -> list[int]:
    return [int(index) for batches in found for batch in batches for index in batch]


@pytest.mark.parametrize("loaders", [0, 2])
def test_each_worker_reads_shards_of_its_own(loaders):
    parts = [epochs(shards(4, loaders), 4, [0, 1], rank, 2) for rank in (0, 1)]

    assert [len(batches) for part in parts for batches in part] == [10, 10, 10, 10]
    for epoch in (0, 1):
        own = [ids(part[epoch : epoch + 1]) for part in parts]
        assert sorted(own[0] + own[1]) == [100 * file + index for file in range(4) for index in range(10)]
        assert len({index // 100 for index in own[0]}) == 2


@pytest.mark.parametrize("loaders", [0, 1, 2, 4])
def test_an_epoch_of_shards_does_not_depend_on_the_epochs_before_it(loaders):
    whole, resumed = epochs(shards(4, loaders), 8, [5, 6, 7]), epochs(shards(4, loaders), 8, [6, 7])

    assert [len(batches) for batches in whole] == [5, 5, 5]  # no multiple of two or four processes
    assert same(whole[1:], resumed)


def test_shards_that_cannot_be_dealt_out_are_read_by_all_workers_which_keep_their_part():
    whole, *parts = (epochs(shards(3), 4, [0], rank, world) for rank, world in ((0, 1), (0, 2), (1, 2)))
    assert ids(parts[0]) == ids(whole)[0::2]
    assert ids(parts[1]) == ids(whole)[1::2]


@pytest.mark.parametrize(("count", "world", "asked", "used"), [(4, 1, 3, 2), (4, 2, 3, 2), (4, 2, 1, 1), (3, 2, 4, 1),
                                                               (12, 2, 5, 3), (4, 1, 0, 0)])  # fmt: skip
def test_processes_get_as_many_shards_each(count, world, asked, used):
    assert shards(count, asked).used_loaders(world=world) == used


def test_an_iterable_that_ends_early_is_begun_again_so_that_workers_stay_together():
    class Short(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(torch.tensor(float(index)), 0) for index in range(6)])

    (found,) = epochs(stream(Short(), length=14), 4, [0])
    assert [batch.tolist() for batch in found] == [[0, 1, 2, 3]] * 3


def test_a_single_process_reads_an_iterable_ahead_in_its_order():
    class InOrder(torch.utils.data.IterableDataset):
        def __len__(self):
            return 10

        def __iter__(self):
            return iter([(torch.tensor([index, random.random()]), 0) for index in range(10)])

    assert stream(InOrder(), 4).used_loaders() == 1
    assert same(epochs(stream(InOrder(), 4), 4, [1, 2]), epochs(stream(InOrder()), 4, [1, 2]))
