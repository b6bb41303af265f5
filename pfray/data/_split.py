"""A split in memory: inputs and targets of any form, with the samples on axis 0."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfray.errors import DataError
from pfray.nn.inputs import Inputs, count, map_tensors, take, tensors


@dataclass(frozen=True)
class Split:
    """One split in memory, already shuffled, so that its head is a fair sample.

    inputs: what the model is called with (``pfray/nn/inputs.py``): a tensor, a tuple or a mapping of tensors, or a list
        with one value for each sample. Images are ``(M, C, H, W)`` uint8, other data float32, tokens int64.
    targets: what the loss reads, likewise; int64 class numbers ``(M,)`` for classification.
    Gradients with respect to either are dropped. Raises DataError for tensors of unequal lengths; ``Task`` checks the
    rest.
    """

    inputs: Inputs
    targets: Any

    def __post_init__(self) -> None:
        self._check_lengths()
        for name in ("inputs", "targets"):
            value = getattr(self, name)
            # Tensors with gradients and negated views cannot become numpy arrays.
            if any(tensor.requires_grad or tensor.is_neg() for tensor in tensors(value)):
                object.__setattr__(self, name, map_tensors(lambda tensor: tensor.detach().resolve_neg(), value))

    def _check_lengths(self) -> None:
        lengths = {}
        for name in ("inputs", "targets"):
            value = getattr(self, name)
            sized = [len(tensor) for tensor in tensors(value) if tensor.dim() and not isinstance(value, list)]
            if len(set(sized)) > 1:
                raise DataError(f"a split's {name} have {' and '.join(map(str, sized))} samples. "
                                "Remedy: tensors of equal length")  # fmt: skip
            if sized or isinstance(value, list):
                lengths[name] = len(value) if isinstance(value, list) else sized[0]
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"a split has {lengths['inputs']} inputs but {lengths['targets']} targets. Remedy: one target a sample"
            )

    def __len__(self) -> int:
        return count(self.inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        # As numpy arrays, which Ray's object store maps into every worker without a copy.
        return _split_from_arrays, (map_tensors(Tensor.numpy, self.inputs), map_tensors(Tensor.numpy, self.targets))

    def head(self, count: int | None) -> Split:
        """The first ``count`` samples; all of them for None."""
        return self if count is None else self.take(slice(count))

    def take(self, which: slice | Tensor) -> Split:
        """The samples ``which``, in that order."""
        return Split(take(self.inputs, which), take(self.targets, which))

    def batches(self, size: int, pinned: bool = False) -> Iterator[tuple[Inputs, Any]]:
        """(inputs, targets) of batches in order."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield take(self.inputs, part), take(self.targets, part)

    def steps(self, size: int) -> int:
        """Whole batches in an epoch, at least one."""
        return max(1, len(self) // size)

    def epochs(
        self, size: int, seeds: Sequence[int], rank: int = 0, world: int = 1, pinned: bool = False
    ) -> Generator[Iterator[tuple[Inputs, Any]], None, None]:
        """One process's part of each batch of each epoch, in an order that depends on the epoch's seed alone.

        rank, world: of the process, among all that train. The last batch is left out if it is not whole.
        """
        return (self._epoch(size, seed, rank, world) for seed in seeds)

    def _epoch(self, size: int, seed: int, rank: int, world: int) -> Iterator[tuple[Inputs, Any]]:
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for index in range(self.steps(size)):
            batch = order[index * size : (index + 1) * size][rank::world]
            yield take(self.inputs, batch), take(self.targets, batch)


# Samples of a stream that are looked at in place of all.
SAMPLED = 64


def in_memory(split: Any) -> Split:
    """The split if it is in memory, else its first ``SAMPLED`` samples."""
    return split if isinstance(split, Split) else split.head(SAMPLED)


def tensor_of(array: np.ndarray) -> Tensor:
    """The array as a tensor that shares its memory, read-only memory too."""
    with warnings.catch_warnings():
        # torch warns that the store's arrays are read-only, but nothing writes into a split.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


def _split_from_arrays(inputs: Any, targets: Any) -> Split:
    return Split(*(map_tensors(tensor_of, value, np.ndarray) for value in (inputs, targets)))
