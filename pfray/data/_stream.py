"""A split read from a data set batch by batch: data that do not fit in memory, or change at every reading.

A map-style data set is read in an order of pfray's own, drawn anew for each epoch and the same for any number of
workers. An iterable one is read in its own order, and each worker keeps its part of every batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from pfray.data._split import Split, tensor_of
from pfray.errors import DataError, PfrayError, first_line, short
from pfray.nn.inputs import Inputs, count, take
from pfray.utils.random_state import kept_generators
from pfray.utils.user_code import place_of

# Samples that an example is taken from.
EXAMPLE = 2
# Settings of a DataLoader with processes of its own.
OPTIONS = ("worker_init_fn", "multiprocessing_context", "timeout", "prefetch_factor")


@dataclass(frozen=True, eq=False)
class Stream:
    """Samples of a data set, read when they are needed.

    name: of the split, for messages. dataset: map-style, or iterable with a length. collate(samples): a batch.
    adapt(batch): (inputs, targets). indices: the samples of a map-style data set that belong to the split, in an order
    whose head is a fair sample; None for an iterable one.
    sampler: draws the indices of an epoch in place of pfray's own order. batch_sampler: draws whole batches, of sizes
    of its own. most: the largest batch of an evaluation. loaders: processes that read ahead in a training of a
    map-style data set, with ``options`` of DataLoader; 0 reads in the training's own process. plain: the same data set
    without random changes, for heads and evaluations; None where there are none, or none can be left out.
    """

    name: str
    dataset: Any
    collate: Callable[[list[Any]], Any]
    adapt: Callable[[Any], tuple[Inputs, Any]]
    indices: Tensor | None = None
    sampler: Any = None
    batch_sampler: Any = None
    most: int | None = None
    loaders: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Split] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    plain: Any = None

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)

    def __getstate__(self) -> dict[str, Any]:
        # As a numpy array, which Ray's object store maps into every worker without a copy.
        return {**vars(self), "indices": None if self.indices is None else self.indices.numpy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        indices = state["indices"]
        vars(self).update(state, indices=None if indices is None else tensor_of(indices))

    def head(self, count: int | None) -> Split | Stream:
        """The first ``count`` samples in memory, read once; the stream itself for None."""
        if count is None:
            return self
        # The first samples are read by themselves, and stay as they are: where batches are padded, they say how long
        # an example is.
        which = "example" if count <= EXAMPLE else "head"
        known = self.kept.get(which)
        # Fewer than asked for are read where a data set leaves some out.
        if known is None or self.asked[which] < min(count, len(self)):
            known = self.kept[which] = self._read_head(max(count, EXAMPLE))
            self.asked[which] = max(count, EXAMPLE)
        return known.head(count)

    def _read_head(self, count: int) -> Split:
        # As one batch, because padding makes the samples of different batches unequal.
        with _seeded(0):
            batch = next(self._read_in_order(count, count), None)
        if batch is None or not _size(batch[0]):
            raise self._nothing()
        return Split(*batch)

    def _nothing(self) -> DataError:
        return DataError(
            f"the {self.name} data gives no whole batch, though its length is {len(self)}. Remedy: a data set that can "
            "be read from the beginning again, whose length is the number of its samples"
        )

    def remarks(self) -> list[str]:
        """What ``adapt`` has found out in this process, such as a count of damaged images, a line each."""
        own = getattr(self.adapt, "remarks", None)
        return own() if callable(own) else []

    def take(self, which: slice | Tensor) -> Stream:
        """The samples at the positions ``which`` of a map-style data set, to be read later in pfray's own order."""
        assert self.indices is not None
        return replace(self, indices=self.indices[which], sampler=None, batch_sampler=None, kept={}, asked={})

    def batches(self, size: int) -> Iterator[tuple[Inputs, Any]]:
        """(inputs, targets) of batches in order, the same at every reading. Raises DataError if there is none."""
        read = 0
        with _seeded(0):
            for batch in self._read_in_order(min(size, self.most or size), None):
                read += 1
                yield batch
        if not read:
            raise self._nothing()

    def steps(self, size: int) -> int:
        """Whole batches in an epoch, at least one."""
        if self.batch_sampler is not None:
            return len(self.batch_sampler)
        return max(1, (len(self) if self.sampler is None else len(self.sampler)) // size)

    def epoch(self, size: int, seed: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Inputs, Any]]:
        """One process's part of each batch of an epoch. Random changes of the samples depend on ``seed`` and rank.

        Raises DataError if there is no batch.
        """
        read = 0
        for batch in self._epoch(size, seed, rank, world):
            read += 1
            yield batch
        if not read:
            raise self._nothing()

    def _epoch(self, size: int, seed: int, rank: int, world: int) -> Iterator[tuple[Inputs, Any]]:
        for drawn in (self.sampler, self.batch_sampler, self.dataset):
            set_epoch: Any = getattr(drawn, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(seed % 2**31)
        with _seeded(seed):
            if self.indices is None:
                for inputs, targets in self._batches_of(DataLoader(self.dataset, size, collate_fn=self.collate)):
                    if _size(inputs) == size or len(self) < size:
                        yield take(inputs, slice(rank, None, world)), take(targets, slice(rank, None, world))
                return
            # A batch that has nothing for some worker is left out by all of them.
            batches = [batch[rank::world] for batch in self._order(size, seed) if len(batch) >= world]
        with _seeded(seed + rank + 1):
            yield from self._read(self.dataset, batches, self.loaders)

    def _order(self, size: int, seed: int) -> list[list[int]]:
        """Indices of each whole batch of an epoch."""
        assert self.indices is not None
        if self.batch_sampler is not None:
            return [list(batch) for batch in self.batch_sampler]
        if self.sampler is not None:
            order = list(self.sampler)
        else:
            drawn = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
            order = self.indices[drawn].tolist()
        return [order[index * size : (index + 1) * size] for index in range(self.steps(size))]

    def _read_in_order(self, size: int, most: int | None) -> Iterator[tuple[Inputs, Any]]:
        dataset = self.dataset if self.plain is None else self.plain
        if self.indices is None:
            yield from self._batches_of(DataLoader(dataset, size, collate_fn=self.collate))
            return
        order = self.indices[:most].tolist()
        yield from self._read(dataset, [order[start : start + size] for start in range(0, len(order), size)], 0)

    def _read(self, dataset: Any, batches: list[list[int]], loaders: int) -> Iterator[tuple[Inputs, Any]]:
        options = self.options if loaders else {}
        yield from self._batches_of(
            DataLoader(dataset, batch_sampler=batches, collate_fn=self.collate, num_workers=loaders, **options)
        )

    def _batches_of(self, loader: DataLoader[Any]) -> Iterator[tuple[Inputs, Any]]:
        """Raises DataError, with file and line, for what goes wrong in the user's data set."""
        batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except PfrayError:
                raise
            except Exception as error:
                raise DataError(
                    f"the {self.name} data cannot be read: {type(error).__name__}: {first_line(error)}"
                    f"{place_of(error)}. Remedy: mend the data set or its collate function"
                ) from error
            inputs, targets = self._adapted(batch)
            if _size(inputs):  # nothing may be left of a small batch
                yield inputs, targets

    def _adapted(self, batch: Any) -> tuple[Inputs, Any]:
        try:
            found = self.adapt(batch)
        except PfrayError:
            raise
        except Exception as error:
            raise DataError(
                f"adapt fails on a batch of the {self.name} data: {type(error).__name__}: {first_line(error)}"
                f"{place_of(error)}. Remedy: adapt=fn(batch) -> (inputs, targets)"
            ) from error
        if not (isinstance(found, tuple) and len(found) == 2):
            raise DataError(
                f"adapt gives a {type(found).__name__} of a batch of the {self.name} data, not a pair. "
                "Remedy: adapt=fn(batch) -> (inputs, targets)"
            )
        return found


def streamed(
    name: str, data: Any, adapt: Callable[[Any], tuple[Inputs, Any]], seed: int, collate: Callable[..., Any]
) -> Stream:
    """The stream of a ``DataLoader`` or a data set, map-style or iterable.

    A loader's data set, ``collate_fn``, processes and samplers are used; its batch size only where an evaluation's
    would be larger. collate: for a data set alone. seed: of the order whose head is a sample. Raises DataError for data
    without a length, without samples, or in batches of its own.
    """
    loader = data if isinstance(data, DataLoader) else None
    dataset: Any = data if loader is None else loader.dataset
    if loader is not None and loader.batch_sampler is None:
        raise DataError(
            f"{name} is a DataLoader with batch_size=None, whose data set makes the batches. Remedy: a batch_size, and "
            "a data set of single samples"
        )
    try:
        length = len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise DataError(
            f"{name} is a {type(dataset).__name__} without a length, so no epoch of it has an end. Remedy: give the "
            "data set a __len__ with its number of samples, or list(data) where it fits in memory"
        ) from error
    if not length:
        raise DataError(f"{name} is an empty {type(dataset).__name__}. Remedy: a data set with samples")
    iterable = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
    most = None if loader is None else loader.batch_size
    if iterable:
        own = collate if loader is None else loader.collate_fn
        return Stream(name, _Iterated(dataset), own, adapt, most=most)
    if loader is None:
        return Stream(name, dataset, collate, adapt, _shuffled(range(length), seed))
    sampler, batch_sampler = _own_samplers(loader)
    with _seeded(seed):
        drawn = [index for batch in batch_sampler for index in batch] if batch_sampler is not None else sampler
        chosen = range(length) if drawn is None else sorted({int(index) for index in drawn})
    if not chosen:
        raise DataError(f"{name}: the sampler of the DataLoader draws no sample. Remedy: one that draws some")
    return Stream(
        name, dataset, loader.collate_fn, adapt, _shuffled(chosen, seed),
        # A sampler of a fixed selection has no more to say than which samples these are.
        sampler=None if hasattr(sampler, "indices") else sampler,
        batch_sampler=batch_sampler,
        most=most,
        loaders=loader.num_workers,
        options={key: value for key in OPTIONS if (value := getattr(loader, key, None))},
    )  # fmt: skip


def _own_samplers(loader: DataLoader[Any]) -> tuple[Any, Any]:
    """(sampler, batch sampler) of the user's own; None for those that a DataLoader makes by itself."""
    if type(loader.batch_sampler) is not BatchSampler:
        return None, loader.batch_sampler
    return (None if isinstance(loader.sampler, _PLAIN) else loader.sampler), None


def _shuffled(indices: Sequence[int], seed: int) -> Tensor:
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(indices)[order]


# Samplers without a choice of their own: pfray's order takes their place.
_PLAIN = (RandomSampler, SequentialSampler, DistributedSampler)


class _Iterated(IterableDataset):
    """An iterable data set, or any other iterable with a length, for a DataLoader."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(epoch)


def _size(inputs: Inputs) -> int:
    try:
        return count(inputs)
    except ValueError as error:
        raise DataError(
            f"a batch's inputs are a {short(type(inputs).__name__)} that holds no tensor. Remedy: "
            "adapt=fn(batch) -> (inputs, targets), with tensors"
        ) from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Global random generators seeded for the data set's own random changes, and restored afterwards."""
    with kept_generators():
        torch.manual_seed(seed % 2**63)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
