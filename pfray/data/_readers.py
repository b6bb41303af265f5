"""Batches read ahead by processes of torch's DataLoader, or in this process.

Of a map-style data set they are the same for any number of processes, of an iterable one for any start of a training.
The DataLoader is asked for whole batches, of all epochs in one go: its processes start once a training, and read the
next epoch's batches while the last one's checkpoint is written.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, get_worker_info

from pfray.errors import DataError, PfrayError, first_line
from pfray.utils.random_state import OwnGenerators, kept_generators, seed_generators
from pfray.utils.user_code import place_of

# Processes that read ahead by default, at most.
MOST = 16
# glibc's parameter, and bytes from which a block is given back to the system when it is freed: batches, not samples.
M_MMAP_THRESHOLD, MMAP_THRESHOLD = -3, 2**20


@dataclass(frozen=True)
class Order:
    """A batch of a map-style data set, to be read.

    epoch: its number, from 0, among those that are read in one go. seed: of the epoch; None outside of trainings.
    indices: of the samples. places: theirs in the whole epoch, on which their random changes depend.
    """

    epoch: int
    seed: int | None
    indices: Sequence[int]
    places: Sequence[int]


@dataclass(frozen=True)
class Failure:
    """An error on its way from a process: torch would make several lines of it."""

    kind: type[PfrayError]
    text: str

    def raised(self) -> PfrayError:
        return self.kind(self.text)


class Turn:
    """In place of a batch, from a process that has none left when it is its turn."""


@dataclass
class Reader(Dataset):
    """Reads the batch of an ``Order`` from a map-style data set. name: of the split, for messages.

    collate(samples): a batch. The global generators are seeded for each sample, so that its random changes are the same
    whoever reads it; a data set that reads several samples at once has them seeded once a batch.
    """

    name: str
    dataset: Any
    collate: Callable[[list[Any]], Any]
    seed: int | None = None

    def __getitem__(self, order: Order) -> tuple[int, Any]:
        try:
            with kept_generators():
                return order.epoch, self._read(order)
        except Exception as error:
            return order.epoch, failure(self.name, error)

    def _read(self, order: Order) -> Any:
        if order.seed is not None and order.seed != self.seed:
            self.seed = order.seed
            set_epoch(self.dataset, order.seed)
        seed = order.seed or 0
        if reads_many(self.dataset):
            seed_generators(_mixed(seed, order.places[0]))
            samples = self.dataset.__getitems__(list(order.indices))
        else:
            samples = []
            for place, index in zip(order.places, order.indices, strict=True):
                seed_generators(_mixed(seed, place))
                samples.append(self.dataset[index])
        # What the collate function draws, such as a mix of two samples.
        seed_generators(_mixed(seed, order.places[0], 1))
        return self.collate(samples)


@dataclass
class IterableReader(IterableDataset):
    """Reads one worker's part of the batches of an iterable data set, in the data set's own order.

    seeds: of the epochs. rank, world: of the worker. steps: batches of an epoch; None for one pass over all samples.
    Where the data set is in shards of Hugging Face's that can be dealt out evenly, each worker reads its own ones, and
    so does each of its processes that read ahead; otherwise each worker reads everything, and keeps its part of every
    batch. A data set that ends before ``steps`` is begun again, so that no worker waits for another in vain.
    The DataLoader takes a batch of each process in turn. Each epoch begins with the first process, so that it does not
    depend on the epochs before it, which a resumed training does not read.
    """

    name: str
    dataset: Any
    length: int
    collate: Callable[[list[Any]], Any]
    size: int
    seeds: Sequence[int]
    steps: int | None = None
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        process = get_worker_info()
        number, processes = (0, 1) if process is None else (process.id, process.num_workers)
        own_shards = has_own_shards(self.dataset, self.world)
        for epoch, seed in enumerate(self.seeds):
            turns = 0
            if self.steps is None:
                samples = _chunks(self.dataset, self.size)
            else:
                turns = len(range(0, self.steps, processes))
                samples = self._epoch(seed, len(range(number, self.steps, processes)), own_shards)
            own = OwnGenerators(_mixed(seed, number, self.rank if own_shards else 0))
            while True:
                try:
                    with own.used():
                        if (part := next(samples, None)) is None:
                            break
                        batch = self.collate(part)
                except Exception as error:
                    yield epoch, failure(self.name, error)
                    return
                yield epoch, batch
                turns -= 1
            for _ in range(turns):
                yield epoch, Turn()

    def _epoch(self, seed: int, steps: int, own_shards: bool) -> Iterator[list[Any]]:
        """Samples of this worker's part of ``steps`` batches."""
        dataset, parts, size = self.dataset, slice(self.rank, None, self.world), self.size
        set_epoch(dataset, seed)
        if own_shards and self.world > 1:
            from datasets.distributed import split_dataset_by_node

            dataset = split_dataset_by_node(_sharded(dataset), self.rank, self.world)
            set_epoch(dataset, seed)
            parts, size = slice(None), len(range(self.rank, size, self.world))
        done, before = 0, -1
        while before < done < steps:  # a pass that gives nothing is the last
            before = done
            for samples in _chunks(dataset, size):
                if len(samples) < size <= self.length:
                    break
                yield samples[parts]
                done += 1
                if done == steps:
                    break


def read(
    reader: Reader | IterableReader, orders: Iterable[Order] | None, loaders: int, options: dict[str, Any], pinned: bool
) -> Generator[tuple[int, Any], None, None]:
    """(number of the epoch, batch) of each order. loaders: processes that read ahead. options: DataLoader's for them.

    pinned: in page-locked memory, which a GPU copies from while it computes. The processes end with the iteration.
    Raises DataError, in one line, for what goes wrong in the data set.
    """
    if loaders:
        options = {**options, "worker_init_fn": _Begin(options.get("worker_init_fn"))}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more processes than processors
        loader = DataLoader(
            reader, batch_size=None, sampler=orders, collate_fn=_unchanged, num_workers=loaders, pin_memory=pinned,
            generator=torch.Generator().manual_seed(0), **(options if loaders else {}),
        )  # fmt: skip
        batches = iter(loader)
    try:
        while (found := next(batches, None)) is not None:
            if isinstance(found[1], Failure):
                raise found[1].raised()
            if not isinstance(found[1], Turn):
                yield found
        return
    except PfrayError:
        raise
    except Exception as error:  # what the data set raises comes as a Failure
        failed = failure(reader.name, error)
        if loaders and not str(error).startswith("Caught"):  # in the user's worker_init_fn
            failed = Failure(
                DataError,
                f"the {reader.name} data cannot be read: a process that reads ahead has failed "
                f"({first_line(error).rstrip('.')}). Remedy: where memory is short, in /dev/shm too, fewer "
                "resources.loaders; with resources.loaders=0 the data set's own error shows",
            )
    finally:
        del batches  # ends the processes, though a traceback may keep this frame
    # Not raised above, because the error's traceback would keep the other processes, whose ends interrupt this one.
    raise failed.raised()


def default_loaders(gpu: bool) -> int:
    """One for each processor of this worker beside a GPU; else for half of them, because the training needs them too.

    The worker's processors are torch's threads, at most ``MOST``.
    """
    processors = torch.get_num_threads()
    return min(MOST, processors if gpu else processors // 2)


def reads_many(dataset: Any) -> bool:
    """True if the data set reads several samples by one call; a part of another only if that one does."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return callable(getattr(dataset, "__getitems__", None))


def has_own_shards(dataset: Any, world: int) -> bool:
    """True if the shards of a Hugging Face iterable data set can be dealt out evenly to ``world`` workers."""
    shards = getattr(_sharded(dataset), "num_shards", 0)
    return shards > 0 and shards % world == 0


def loaders_of_shards(dataset: Any, world: int, loaders: int) -> int:
    """Processes that read an iterable data set ahead for each of ``world`` workers: at most ``loaders`` to which the
    worker's own shards can be dealt out evenly, else a single one."""
    own = _sharded(dataset).num_shards // world if has_own_shards(dataset, world) else 1
    return max((count for count in range(1, loaders + 1) if own % count == 0), default=0)


def _sharded(dataset: Any) -> Any:
    """The Hugging Face iterable data set that this one is, or keeps as its ``data``; None for any other."""
    while isinstance(dataset, IterableDataset) and type(dataset).__module__.partition(".")[0] != "datasets":
        dataset = getattr(dataset, "data", None)
    return dataset if isinstance(dataset, IterableDataset) else None


def set_epoch(drawn: Any, seed: int) -> None:
    """Tell a data set or a sampler that has epochs of its own."""
    if callable(own := getattr(drawn, "set_epoch", None)):
        own(seed % 2**31)


def failure(name: str, error: Exception) -> Failure:
    """The error of a user's data set or collate function, with file and line; a PfrayError is itself."""
    if isinstance(error, PfrayError):
        return Failure(type(error), str(error))
    return Failure(
        DataError,
        f"the {name} data cannot be read: {type(error).__name__}: {first_line(error)}{place_of(error)}. "
        "Remedy: mend the data set or its collate function",
    )


def _chunks(data: Iterable[Any], size: int) -> Iterator[list[Any]]:
    samples = iter(data)
    while chunk := list(islice(samples, size)):
        yield chunk


def _mixed(seed: int, place: int, purpose: int = 0) -> int:
    """A seed for each place of each epoch, whose random streams are unrelated."""
    return ((seed * 1_000_003 + place) * 1_000_003 + purpose + 0x9E3779B9) % 2**62


def _unchanged(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class _Begin:
    """Start of a process that reads ahead. own: the user's function for it."""

    own: Callable[[int], None] | None

    def __call__(self, number: int) -> None:
        # Ctrl-C reaches all processes of a terminal; the one that reads decides, and the others end with it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # glibc raises this threshold by itself, and a batch that is freed in another thread then leaves holes in the
        # heap, which grew by megabytes a batch.
        if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        if self.own is not None:
            self.own(number)
