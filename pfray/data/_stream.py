"""A split read from a data set batch by batch: data that do not fit in memory, or change at every reading.

A map-style data set is read in an order of pfray's own, drawn anew for each epoch and the same for any number of
workers, each of which reads its own samples. An iterable one is read in its own order. ``_readers.py`` reads.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from pfray.data import _readers
from pfray.data._readers import IterableReader, Order, Reader
from pfray.data._split import Split, tensor_of
from pfray.errors import DataError, PfrayError, first_line, short
from pfray.nn.inputs import Inputs, count
from pfray.utils.random_state import kept_generators, seed_generators
from pfray.utils.user_code import place_of

# Samples that an example is taken from.
EXAMPLE = 2
# Samples of a head that a process reads at a time.
PART = 32


@dataclass(frozen=True, eq=False)
class Stream:
    """Samples of a data set, read when they are needed.

    name: of the split, for messages. dataset: map-style, or iterable with a length. collate(samples): a batch.
    adapt(batch): (inputs, targets). indices: the samples of a map-style data set that belong to the split, in an order
    whose head is a fair sample; None for an iterable one.
    sampler: draws the indices of an epoch in place of pfray's own order. batch_sampler: draws whole batches, of sizes
    of its own. most: the largest batch of an evaluation. loaders: processes that read ahead, with ``options`` of
    DataLoader; 0 reads in the training's own process, None leaves the number to the worker's processors. plain: the
    same data set without random changes, for heads and evaluations; None where there are none, or none can be left out.
    """

    name: str
    dataset: Any
    collate: Callable[[list[Any]], Any]
    adapt: Callable[[Any], tuple[Inputs, Any]]
    indices: Tensor | None = None
    sampler: Any = None
    batch_sampler: Any = None
    most: int | None = None
    loaders: int | None = None
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

    def head(self, count: int | None) -> Any:
        """The first ``count`` samples in memory, a ``Split``, read once; the stream itself for None."""
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
        dataset = self.dataset if self.plain is None else self.plain
        if self.indices is None:
            reader: Any = IterableReader(self.name, dataset, len(self), self.collate, count, [0])
            read = _readers.read(reader, None, 0, {}, False)
        else:
            # Pickled, because each tensor of a list would come with an open file of its own.
            parts = Reader(self.name, dataset, pickle.dumps)
            loaders = min(self.used_loaders(), min(count, len(self)) // PART)
            read = _readers.read(parts, self._in_order(PART, count), loaders, self.options, False)
            samples = [sample for _, part in read for sample in pickle.loads(part)]
            whole = Order(0, None, range(len(samples)), range(len(samples)))
            read = _readers.read(Reader(self.name, samples, self.collate), [whole] if samples else [], 0, {}, False)
        batch = next(self._adapted(read), None)
        if batch is None:
            raise self._nothing()
        return Split(*batch)

    def _nothing(self) -> DataError:
        return DataError(
            f"the {self.name} data gives no whole batch, though its length is {len(self)}. Remedy: a data set that can "
            "be read from the beginning again, whose length is the number of its samples"
        )

    def _size(self, inputs: Inputs) -> int:
        try:
            return count(inputs)
        except ValueError as error:
            raise DataError(
                f"{self.name}: a batch's inputs are a {short(type(inputs).__name__)} that holds no tensor. Remedy: "
                "adapt=fn(batch) -> (inputs, targets), with tensors"
            ) from error

    def remarks(self, world: int = 1) -> list[str]:
        """What ``adapt`` has found out in this process, such as a count of damaged images, a line each; in ``world``
        workers, which all call this."""
        own = getattr(self.adapt, "remarks", None)
        return own(world) if callable(own) else []

    def take(self, which: slice | Tensor) -> Stream:
        """The samples at the positions ``which`` of a map-style data set, to be read later in pfray's own order."""
        assert self.indices is not None
        return replace(self, indices=self.indices[which], sampler=None, batch_sampler=None, kept={}, asked={})

    def used_loaders(self, gpu: bool = False, world: int = 1) -> int:
        """Processes that read ahead for this one, beside a GPU or not, which is one of ``world`` workers."""
        loaders = _readers.default_loaders(gpu) if self.loaders is None else self.loaders
        if self.indices is not None:
            return loaders
        return _readers.loaders_of_shards(self.dataset, world, loaders)

    def batches(self, size: int, pinned: bool = False) -> Iterator[tuple[Inputs, Any]]:
        """(inputs, targets) of batches in order, the same at every reading. Raises DataError if there is none."""
        dataset = self.dataset if self.plain is None else self.plain
        size, loaders, orders = min(size, self.most or size), self.used_loaders(pinned), None
        if self.indices is None:
            reader: Any = IterableReader(self.name, dataset, len(self), self.collate, size, [0])
        else:
            reader = Reader(self.name, dataset, self.collate)
            orders = self._in_order(size, None)
            loaders = min(loaders, -(-len(self) // size))
        done = 0
        with closing(_readers.read(reader, orders, loaders, self.options, pinned)) as read:
            for batch in self._adapted(read):
                done += 1
                yield batch
        if not done:
            raise self._nothing()

    def steps(self, size: int) -> int:
        """Whole batches in an epoch, at least one."""
        if self.batch_sampler is not None:
            return len(self.batch_sampler)
        return max(1, (len(self) if self.sampler is None else len(self.sampler)) // size)

    def epochs(
        self, size: int, seeds: Sequence[int], rank: int = 0, world: int = 1, pinned: bool = False
    ) -> Generator[Iterator[tuple[Inputs, Any]], None, None]:
        """One process's part of each batch of each epoch. An epoch, with its samples' random changes, depends on its
        seed alone, and of an iterable data set on who reads it; the processes that read ahead go on from one epoch to
        the next, and end with the iteration.

        Raises DataError if an epoch has no batch.
        """
        if self.indices is None:
            steps, orders = self.steps(size), None
            reader: Any = IterableReader(
                self.name, self.dataset, len(self), self.collate, size, seeds, steps, rank, world
            )
        else:
            reader = Reader(self.name, self.dataset, self.collate)
            orders = self._orders(size, seeds, rank, world)
        done, loaders = 0, self.used_loaders(pinned, world)
        with closing(_readers.read(reader, orders, loaders, self.options, pinned)) as read:
            for epoch, batches in groupby(read, itemgetter(0)):
                if epoch != done:
                    raise self._nothing()
                yield self._adapted(batches, world)
                done += 1
        if done < len(seeds):
            raise self._nothing()

    def _orders(self, size: int, seeds: Sequence[int], rank: int, world: int) -> Iterator[Order]:
        """One process's part of each batch. A batch that has nothing for some worker is left out by all of them."""
        for epoch, seed in enumerate(seeds):
            first = 0
            for batch in self._drawn(size, seed):
                places = range(first, first + len(batch))
                first += len(batch)
                if len(batch) >= world:
                    yield Order(epoch, seed, batch[rank::world], places[rank::world])

    def _drawn(self, size: int, seed: int) -> Iterator[list[int]]:
        """Indices of each whole batch of an epoch."""
        assert self.indices is not None
        for drawn in (self.sampler, self.batch_sampler, getattr(self.batch_sampler, "sampler", None)):
            _readers.set_epoch(drawn, seed)
            if isinstance(own := getattr(drawn, "generator", None), torch.Generator):
                own.manual_seed(seed)  # a resumed training has not drawn the epochs before
        if self.sampler is None and self.batch_sampler is None:
            order = self.indices[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))]
            yield from (order[index * size : (index + 1) * size].tolist() for index in range(self.steps(size)))
            return
        with kept_generators():
            seed_generators(seed)
            if self.batch_sampler is not None:
                batches = [list(batch) for batch in self.batch_sampler]
            else:
                own = list(self.sampler)
                batches = [own[index * size : (index + 1) * size] for index in range(self.steps(size))]
        yield from batches

    def _in_order(self, size: int, most: int | None) -> Iterator[Order]:
        assert self.indices is not None
        order = self.indices[:most]
        for start in range(0, len(order), size):
            part = order[start : start + size].tolist()
            yield Order(0, None, part, range(start, start + len(part)))

    def _adapted(self, read: Iterable[tuple[int, Any]], world: int = 1) -> Iterator[tuple[Inputs, Any]]:
        for _, batch in read:
            inputs, targets = self._pair(batch)
            if self._size(inputs):  # a data set may leave samples out, and all of a small batch
                yield inputs, targets
            elif world > 1:  # the others would wait for this worker's step
                raise DataError(
                    f"the {self.name} data leaves out all samples of a batch that one of the {world} workers has. "
                    "Remedy: a larger batch_size, fewer resources.workers, or a data set without these samples"
                )

    def _pair(self, batch: Any) -> tuple[Inputs, Any]:
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


