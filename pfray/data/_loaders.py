"""Streams of what users have: a ``DataLoader``, or a data set, map-style or iterable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from pfray.data._stream import Stream
from pfray.errors import DataError
from pfray.nn.inputs import Inputs
from pfray.utils.random_state import kept_generators, seed_generators

# Settings of a DataLoader with processes of its own.
OPTIONS = ("worker_init_fn", "multiprocessing_context", "timeout", "prefetch_factor")


def streamed(
    name: str,
    data: Any,
    adapt: Callable[[Any], tuple[Inputs, Any]],
    seed: int,
    collate: Callable[..., Any],
    length: int | None = None,
) -> Stream:
    """The stream of a ``DataLoader`` or a data set, map-style or iterable.

    A loader's data set, ``collate_fn``, processes and samplers are used; its batch size only where an evaluation's
    would be larger. collate: for a data set alone. seed: of the order whose head is a sample. length: of an iterable
    data set that does not know it. Raises DataError for data without a length, without samples, or in batches of its
    own.
    """
    loader = data if isinstance(data, DataLoader) else None
    dataset: Any = data if loader is None else loader.dataset
    if loader is not None and loader.batch_sampler is None:
        raise DataError(
            f"{name} is a DataLoader with batch_size=None, whose data set makes the batches. Remedy: a batch_size, and "
            "a data set of single samples"
        )
    iterable = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
    try:
        length = len(dataset) if length is None or not iterable else length
    except (TypeError, NotImplementedError) as error:
        raise DataError(
            f"{name} is a {type(dataset).__name__} without a length, so no epoch of it has an end. Remedy: give the "
            "data set a __len__ with its number of samples, as_split(..., length=), or list(data) where it fits in "
            "memory"
        ) from error
    if not length:
        raise DataError(f"{name} is an empty {type(dataset).__name__}. Remedy: a data set with samples")
    most = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    loaders = 0 if loader is None else loader.num_workers
    if iterable:
        own = collate if loader is None else loader.collate_fn
        return Stream(name, Iterated(dataset, length), own, adapt, most=most, loaders=loaders, options=_options(loader))
    if loader is None:
        return Stream(name, dataset, collate, adapt, shuffled(range(length), seed), loaders=0)
    sampler, batch_sampler = _own_samplers(loader)
    with kept_generators():
        seed_generators(seed)
        drawn = [index for batch in batch_sampler for index in batch] if batch_sampler is not None else sampler
        chosen = range(length) if drawn is None else sorted({int(index) for index in drawn})
    if not chosen:
        raise DataError(f"{name}: the sampler of the DataLoader draws no sample. Remedy: one that draws some")
    return Stream(
        name, dataset, loader.collate_fn, adapt, shuffled(chosen, seed),
        # A sampler of a fixed selection has no more to say than which samples these are.
        sampler=None if hasattr(sampler, "indices") else sampler,
        batch_sampler=batch_sampler,
        most=most,
        loaders=loaders,
        options=_options(loader),
    )  # fmt: skip


def _options(loader: DataLoader[Any] | None) -> dict[str, Any]:
    return {key: value for key in OPTIONS if (value := getattr(loader, key, None))}


def _own_samplers(loader: DataLoader[Any]) -> tuple[Any, Any]:
    """(sampler, batch sampler) of the user's own; None for those that a DataLoader makes by itself."""
    if type(loader.batch_sampler) is not BatchSampler:
        return None, loader.batch_sampler
    return (None if is_plain(loader) else loader.batch_sampler.sampler), None


def is_plain(loader: DataLoader[Any]) -> bool:
    """True for batches of all samples, each once, in order or shuffled: pfray's order takes the sampler's place."""
    if type(loader.batch_sampler) is not BatchSampler:
        return False
    data: Any = loader.dataset
    sampler: Any = loader.batch_sampler.sampler  # the loader's own is another where a BatchSampler was given
    kind: Any = type(sampler)
    if kind is DistributedSampler:
        return len(sampler.dataset) == len(data)
    if kind is RandomSampler and sampler.replacement:
        return False
    return kind in (RandomSampler, SequentialSampler) and len(sampler) == len(sampler.data_source) == len(data)


def shuffled(indices: Sequence[int], seed: int) -> Tensor:
    """The indices in an order whose head is a fair sample."""
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(indices)[order]


class Iterated(IterableDataset):
    """An iterable data set, or any other iterable, and the number of its samples."""

    def __init__(self, data: Any, length: int) -> None:
        self.data, self.length = data, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(epoch)
