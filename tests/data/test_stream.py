"""Splits read from data sets batch by batch."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from pfray.data._loaders import streamed
from pfray.data._stream import Stream
from pfray.errors import DataError
from pfray.nn.inputs import tensors


class Numbers(Dataset):
    """Sample i is the number i, and ``noise`` times a number drawn by each of the three generators."""

    def __init__(self, count: int = 20, noise: float = 0.0) -> None:
        self.count, self.noise = count, noise

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        drawn = torch.rand(()) + float(np.random.rand()) + random.random()
        return index + self.noise * drawn, index % 3


class InOrder(IterableDataset):
    def __len__(self) -> int:
        return 10

    def __iter__(self):
        return iter([(torch.tensor(float(index)), index % 2) for index in range(10)])


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(1), 0


class Backwards(SequentialSampler):
    """A sampler of the user's own."""

    def __iter__(self):
        return iter(range(len(self.data_source) - 1, -1, -1))


def stream(data: object, seed: int = 0) -> Stream:
    return streamed("train", data, tuple, seed, default_collate)


def epoch(whole: Stream, size: int, seed: int, rank: int = 0, world: int = 1):
    return (batch for batches in whole.epochs(size, [seed], rank, world) for batch in batches)


def values(batches: object) -> list[float]:
    return torch.cat([batch[0].flatten() for batch in batches]).tolist()  # type: ignore[attr-defined]


def test_the_head_is_a_fair_sample_read_once():
    class Counting(Numbers):
        read = 0

        def __getitem__(self, index):
            Counting.read += 1
            return super().__getitem__(index)

    whole = stream(Counting(100))
    head = whole.head(30)

    assert len(head) == 30
    assert max(values([(head.inputs, None)])) > 60
    assert whole.head(10).inputs.tolist() == head.inputs[:10].tolist()
    assert Counting.read == 30


def test_evaluation_reads_everything_in_the_same_order_and_with_the_same_random_changes():
    whole = stream(Numbers(20, noise=0.5))
    first, again = values(whole.batches(7)), values(whole.batches(7))

    assert first == again
    assert sorted(int(value) for value in first) == sorted(int(value) for value in again)
    assert len(first) == 20


def test_global_generators_are_left_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    list(stream(Numbers(noise=1.0)).batches(4))
    stream(Numbers(noise=1.0)).head(4)
    assert torch.equal(torch.rand(3), wanted)


def test_an_epoch_depends_on_its_seed_alone_and_changes_the_samples_anew():
    whole = stream(Numbers(20, noise=0.5))
    one, again, other = (values(epoch(whole, 8, seed)) for seed in (1, 1, 2))

    assert one == again
    assert one != other
    assert len(one) == 16  # the last batch is not whole
    plain = stream(Numbers(20))
    assert sorted(values(epoch(plain, 20, 3))) == list(range(20))


@pytest.mark.parametrize("data", [Numbers(20), InOrder()], ids=["map-style", "iterable"])
def test_workers_share_every_batch(data):
    whole = stream(data)
    together = [batch[0].tolist() for batch in epoch(whole, 4, 7)]
    parts = [[batch[0].tolist() for batch in epoch(whole, 4, 7, rank, 2)] for rank in (0, 1)]

    assert len(together) == len(whole) // 4
    for index, batch in enumerate(together):
        assert parts[0][index] == batch[0::2]
        assert parts[1][index] == batch[1::2]


def test_processes_that_read_ahead_give_the_same_order():
    loader = DataLoader(Numbers(12), batch_size=5, num_workers=2)
    assert stream(loader).loaders == 2
    assert values(epoch(stream(loader), 4, 3)) == values(epoch(stream(Numbers(12)), 4, 3))


def test_a_loaders_collate_function_and_sampler_are_used():
    def doubled(samples):
        inputs, targets = default_collate(samples)
        return {"x": 2 * inputs}, targets

    weights = torch.zeros(20)
    weights[7] = 1
    loader = DataLoader(Numbers(20), 5, sampler=WeightedRandomSampler(weights, 20), collate_fn=doubled)
    batches = list(epoch(stream(loader), 5, 0))

    assert len(batches) == 4
    assert {value for inputs, _ in batches for value in inputs["x"].tolist()} == {14.0}


@pytest.mark.parametrize(("sampler", "count"), [
    (RandomSampler(Numbers(20), replacement=True), 20),
    (RandomSampler(Numbers(20), replacement=True, num_samples=50), 50),
    (RandomSampler(Numbers(20), num_samples=10), 10),
    (RandomSampler(range(10)), 10),
    (SequentialSampler(range(10)), 10),
    (Backwards(Numbers(20)), 20),
], ids=["replacement", "more", "fewer", "the first ones", "the first ones in order", "a class of its own"])  # fmt: skip
def test_a_sampler_that_does_not_give_each_sample_once_is_kept(sampler, count):
    for settings in ({"batch_size": 5, "sampler": sampler}, {"batch_sampler": BatchSampler(sampler, 5, False)}):
        whole = stream(DataLoader(Numbers(20), **settings))
        assert whole.sampler is sampler
        assert whole.steps(5) == count // 5
        epochs = [values(epoch(whole, 5, seed)) for seed in range(4)]
        assert [len(found) for found in epochs] == [count] * 4
        drawn = {value for found in epochs for value in found}
        assert (max(drawn) < 10) == (getattr(sampler, "data_source", None) == range(10))
        assert next(len(batch[1]) for batch in whole.batches(64)) == 5


@pytest.mark.parametrize("sampler", [
    RandomSampler(Numbers(20)), SequentialSampler(Numbers(20)), DistributedSampler(Numbers(20), 2, 0),
], ids=["shuffled", "in order", "distributed"])  # fmt: skip
def test_in_place_of_a_sampler_that_gives_each_sample_once_is_pfrays_order(sampler):
    for settings in ({"batch_size": 5, "sampler": sampler}, {"batch_sampler": BatchSampler(sampler, 5, False)}):
        whole = stream(DataLoader(Numbers(20), **settings))
        assert whole.sampler is None
        assert sorted(values(epoch(whole, 5, 0))) == list(range(20))
        assert values(epoch(whole, 5, 0)) == values(epoch(stream(Numbers(20)), 5, 0))


def test_a_batch_sampler_makes_the_batches():
    loader = DataLoader(Numbers(6), batch_sampler=[[0, 1, 2], [3], [4, 5]])
    whole = stream(loader)

    assert whole.steps(64) == 3
    assert [batch[0].tolist() for batch in epoch(whole, 64, 0)] == [[0, 1, 2], [3], [4, 5]]


def test_padded_samples_have_a_head_of_one_length():
    words = [(torch.ones(length), 0) for length in (1, 5, 3, 2)]

    def padded(samples):
        return torch.nn.utils.rnn.pad_sequence([x for x, _ in samples], batch_first=True), torch.zeros(len(samples))

    head = stream(DataLoader(words, 2, collate_fn=padded)).head(4)
    assert head.inputs.shape == (4, 5)


def test_it_travels_with_what_was_read():
    whole = stream(Numbers(20))
    wanted = whole.head(6)
    copy = pickle.loads(pickle.dumps(whole))

    assert copy.kept["head"].inputs.tolist() == wanted.inputs.tolist()
    assert len(tensors(copy.head(3).inputs)[0]) == 3


def test_a_fixed_selection_is_the_split():
    chosen = [3, 5, 8, 13]
    whole = stream(DataLoader(Numbers(20), 2, sampler=SubsetRandomSampler(chosen)))

    assert len(whole) == 4
    assert sorted(values(whole.batches(3))) == chosen
    assert sorted(values(epoch(whole, 2, 1))) == chosen


def test_a_sampler_may_draw_more_than_the_data_set_has():
    loader = DataLoader(Numbers(10), 5, sampler=WeightedRandomSampler(torch.ones(10), 30))
    whole = stream(loader)
    assert whole.steps(5) == 6
    assert len(values(epoch(whole, 5, 0))) == 30


def test_an_epoch_of_a_sampler_with_a_generator_of_its_own_does_not_depend_on_the_epochs_before_it():
    def own():
        return WeightedRandomSampler(torch.ones(20), 20, generator=torch.Generator().manual_seed(3))

    for settings in ({"batch_size": 5, "sampler": own()}, {"batch_sampler": Doubled(own(), 5, False)}):
        whole = stream(DataLoader(Numbers(20), **settings))
        once = values(epoch(whole, 5, 2))
        assert values(epoch(whole, 5, 1)) != once
        assert values(epoch(whole, 5, 2)) == once


class Doubled(BatchSampler):
    """A batch sampler of the user's own around a sampler."""

    def __len__(self) -> int:
        return 4


def test_the_example_stays_when_a_longer_head_is_read():
    words = [(torch.ones(length), 0) for length in (3, 2, 9, 4)]

    def padded(samples):
        return torch.nn.utils.rnn.pad_sequence([x for x, _ in samples], batch_first=True), torch.zeros(len(samples))

    whole = stream(DataLoader(words, 2, collate_fn=padded))
    before = whole.head(1).inputs.shape
    assert whole.head(4).inputs.shape == (4, 9)
    assert whole.head(1).inputs.shape == before


def test_an_evaluation_takes_no_larger_batches_than_the_loader():
    sizes = [len(batch[1]) for batch in stream(DataLoader(Numbers(10), 4)).batches(250)]
    assert sizes == [4, 4, 2]


def test_a_small_batch_of_the_users_own_is_left_out_by_all_workers():
    whole = stream(DataLoader(Numbers(6), batch_sampler=[[0, 1, 2], [3], [4, 5]]))
    parts = [[batch[0].tolist() for batch in epoch(whole, 64, 0, rank, 2)] for rank in (0, 1)]
    assert parts == [[[0, 2], [4]], [[1], [5]]]


def test_heads_and_evaluations_read_what_has_no_random_changes():
    whole = replace(stream(Numbers(20, noise=0.5)), plain=Numbers(20))
    assert sorted(values(whole.batches(6))) == list(range(20))
    assert all(value == int(value) for value in whole.head(8).inputs.tolist())
    assert not any(value == int(value) for value in values(epoch(whole, 4, 0)))


def odd(batch: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = batch
    return inputs[inputs % 2 == 1], targets[inputs % 2 == 1]


def test_samples_may_be_left_out_and_a_batch_without_any_is_none():
    whole = streamed("test", Numbers(20), odd, 0, default_collate)
    sizes = [len(inputs) for inputs, _ in whole.batches(1)]
    assert sizes == [1] * 10
    head = whole.head(20)
    assert len(head) == 10
    assert whole.head(20).inputs.data_ptr() == head.inputs.data_ptr()  # not read again


def test_a_worker_whose_part_of_a_batch_is_left_out_ends_the_training_in_which_others_would_wait():
    whole = streamed("train", Numbers(20), odd, 0, default_collate)
    assert sum(len(inputs) for inputs, _ in epoch(whole, 2, 0)) == 10
    with pytest.raises(DataError, match="leaves out all samples of a batch that one of the 2 workers has"):
        list(epoch(whole, 2, 0, 0, 2))


def test_its_order_is_an_array_that_workers_of_a_machine_share():
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(stream(Numbers(1000)), 5, buffer_callback=buffers.append)
    assert [buffer.raw().nbytes for buffer in buffers] == [8000]
    whole = stream(Numbers(50))
    assert values(pickle.loads(pickle.dumps(whole)).batches(9)) == values(whole.batches(9))


class Once(IterableDataset):
    """Can be read a single time."""

    def __init__(self):
        self.left = iter([(torch.tensor(float(index)), 0) for index in range(8)])

    def __len__(self):
        return 8

    def __iter__(self):
        return self.left


def test_data_that_can_be_read_once_are_named():
    whole = stream(Once())
    assert len(values(epoch(whole, 4, 0))) == 8
    for read in (epoch(whole, 4, 1), whole.batches(4)):
        with pytest.raises(DataError, match="the train data gives no whole batch, though its length is 8"):
            list(read)


@pytest.mark.parametrize(("data", "words"), [
    (DataLoader(Numbers(4), batch_size=None), "batch_size=None"),
    (Endless(), "train is a Endless without a length"),
    (Numbers(0), "train is an empty Numbers"),
    ([], "train is an empty list"),
])  # fmt: skip
def test_data_that_have_no_epoch_are_one_line(data, words):
    with pytest.raises(DataError, match=words) as caught:
        stream(data)
    assert "Remedy: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_of_the_data_set_names_its_line():
    class Broken(Numbers):
        def __getitem__(self, index):
            raise KeyError("no such image")

    with pytest.raises(DataError, match=r"the train data cannot be read: KeyError.*test_stream.py, line \d+"):
        stream(Broken()).head(2)


def test_what_adapt_gives_is_checked():
    for adapt, words in ((lambda batch: batch[0], "adapt gives a Tensor"), (lambda batch: batch.x, "adapt fails on a")):
        with pytest.raises(DataError, match=words):
            streamed("train", Numbers(), adapt, 0, default_collate).head(2)
