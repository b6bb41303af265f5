"""Splits of a task from users' tensors, data sets, loaders and lists of samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from pfray.data._loaders import is_plain, streamed
from pfray.data._split import Split
from pfray.data._stream import Stream
from pfray.errors import DataError, first_line, short, shown
from pfray.nn.inputs import Inputs, form, map_tensors, tensors
from pfray.task import Samples

# Names under which batches that are mappings keep their targets.
LABELS = ("labels", "label", "targets", "target", "y")
# Share of the training data that becomes the validation split.
HELD_OUT = 0.1


def split_of(
    name: str, data: Any, adapt: Callable[[Any], Any] | None, model: nn.Module | None, seed: int,
    length: int | None = None,
) -> Samples:
    """The split ``name`` of what a user has: a split, a pair of tensors, a DataLoader, a data set (map-style, iterable,
    Hugging Face's), or a list of samples.

    adapt(batch): (inputs, targets), for batches that are neither (inputs ..., targets) nor mappings with a label.
    model: whose arguments choose the entries of a mapping; None for all. seed: of the order. length: of an iterable
    data set that does not know it. Raises DataError.
    """
    if isinstance(data, Split | Stream):
        return data
    if isinstance(data, Mapping) and all(hasattr(value, "features") for value in data.values()) and data:
        raise DataError(f"{name}: a {type(data).__name__} of {', '.join(map(str, data))}. Remedy: {name}=data['train']")
    if adapt is None and (pair := _as_tensors(data)) is not None:
        return _shuffled(name, *pair, seed)
    if isinstance(data, Tensor | np.ndarray):
        kind = f"{str(data.dtype).removeprefix('torch.')} {tuple(data.shape)}"
        raise DataError(
            f"{name}: a {type(data).__name__} of {kind} alone, without targets. Remedy: {name}=(inputs, targets)"
        )
    if adapt is not None and _as_tensors(data) is not None and isinstance(data, tuple):
        raise DataError(
            f"{name}: a pair of tensors, (inputs, targets), needs no adapt. Remedy: leave adapt out, or "
            "torch.utils.data.TensorDataset(inputs, targets), whose batches it gets"
        )
    several = isinstance(data, tuple | list) and data and all(isinstance(part, Tensor | np.ndarray) for part in data)
    if several or (isinstance(data, Mapping) and _are_arrays(data)):
        raise DataError(
            f"{name}: a {type(data).__name__} of {len(data)} tensors. Remedy: a pair (inputs, targets), whose inputs "
            "may be a tuple or a mapping"
        )
    if isinstance(data, str | bytes) or (not hasattr(data, "__iter__") and not _is_map(data)):
        raise DataError(
            f"{name}: a {type(data).__name__} ({shown(data)}) is no data. Allowed: a pair of tensors (inputs, "
            "targets), a torch DataLoader or Dataset, a Hugging Face dataset, or a list of samples"
        )
    if hasattr(data, "features") and hasattr(data, "with_format") and getattr(data, "format", {}).get("type") is None:
        data = data.with_format("torch")
    collated = getattr(data, "collate_fn", default_collate) is default_collate
    arguments, others = ((), True) if model is None else _arguments(model)
    plain = PlainBatch(arguments, others, collated, name)
    return streamed(name, data, adapt or plain, seed, default_collate, length)


def held_out(train: Samples, seed: int) -> tuple[Samples, Samples]:
    """(the rest, a tenth) of the training data, the classes in equal proportions where they are known.

    Raises DataError for data that are read in their own order.
    """
    size = max(1, round(HELD_OUT * len(train)))
    if isinstance(train, Stream) and (train.sampler is not None or train.batch_sampler is not None):
        raise DataError(
            "validation: none is given, and what is held out of train would be lost to its sampler. Remedy: validation="
        )
    if isinstance(train, Stream) and train.indices is None:
        raise DataError(
            "validation: none is given, and train is read in its own order, so that nothing can be held out. Remedy: "
            "validation="
        )
    if size >= len(train):
        raise DataError(f"train: {len(train)} samples are too few to hold any out for validation. Remedy: validation=")
    order = np.random.default_rng(seed).permutation(len(train))
    targets = getattr(train, "targets", None)
    if isinstance(targets, Tensor) and targets.dtype == torch.int64 and targets.dim() == 1:
        from sklearn.model_selection import train_test_split

        try:
            kept, held = train_test_split(order, test_size=size, stratify=targets.numpy()[order], random_state=seed)
        except ValueError:  # a class with a single sample, or more classes than are held out
            kept, held = order[size:], order[:size]
    else:
        kept, held = order[size:], order[:size]
    part: Any = train
    return part.take(torch.from_numpy(kept)), part.take(torch.from_numpy(held))


@dataclass(frozen=True)
class PlainBatch:
    """Batches as most loaders give them: (inputs, targets), (input, input, ..., targets), or a mapping with a label.

    arguments: names of the model's arguments; the other entries of a mapping are left out, unless it has none of these
    and the model takes ``others``. collated: by torch's own function, which makes a list of the parts of a sample;
    another function's list has a value for each sample. name: of the split, for messages.
    """

    arguments: tuple[str, ...] = ()
    others: bool = True
    collated: bool = False
    name: str = "data"

    def __call__(self, batch: Any) -> tuple[Inputs, Any]:
        if isinstance(batch, Mapping):
            return self._of_mapping(batch)
        if isinstance(batch, tuple | list) and len(batch) > 1:
            *inputs, targets = batch
            if self.collated:
                inputs = [tuple(part) if isinstance(part, list) else part for part in inputs]
            return (inputs[0] if len(inputs) == 1 else tuple(inputs)), _single_precision(targets)
        found = "inputs alone" if len(tensors(batch)) == 1 else "no pair"
        raise DataError(
            f"{self.name}: a batch is {form(batch)}, {found}, without targets. Remedy: samples (input, target), or "
            "adapt=fn(batch) -> (inputs, targets)"
        )

    def _of_mapping(self, batch: Mapping[str, Any]) -> tuple[Inputs, Any]:
        label = next((key for key in LABELS if key in batch), None)
        values = {key: value for key, value in batch.items() if key != label and tensors(value)}
        taken = {key: value for key, value in values.items() if key in self.arguments}
        if not taken and self.others:
            taken = values
        if label is None or not values:
            raise DataError(
                f"{self.name}: a batch has {', '.join(map(shown, batch))}, of which "
                + (f"none is named {', '.join(LABELS)}" if label is None else "no input is a tensor")
                + ". Remedy: adapt=fn(batch) -> (inputs, targets)"
            )
        if not taken and len(values) > 1:
            raise DataError(
                f"{self.name}: a batch has {', '.join(map(shown, values))}, and the model takes "
                f"{', '.join(self.arguments)}. Remedy: adapt=fn(batch) -> (inputs, targets)"
            )
        # One input of a name that the model does not know is its only one.
        return (taken or next(iter(values.values()))), _single_precision(batch[label])


def _arguments(model: nn.Module) -> tuple[tuple[str, ...], bool]:
    """(names of the model's arguments, whether it takes any others)."""
    parameters = inspect.signature(model.forward).parameters.values()
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = tuple(parameter.name for parameter in parameters if parameter.kind not in variable)
    return named, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _as_tensors(data: Any) -> tuple[Inputs, Any] | None:
    """(inputs, targets) of a pair, or of a data set of tensors with nothing done to them; None for other data."""
    if isinstance(data, tuple) and len(data) == 2 and _are_arrays(data[0]) and _are_arrays(data[1]):
        inputs, targets = (map_tensors(torch.as_tensor, part, np.ndarray) for part in data)
        return inputs, targets
    if isinstance(data, DataLoader):
        if data.collate_fn is not default_collate or not is_plain(data):
            return None
        data = data.dataset
    if type(data) is TensorDataset and len(data.tensors) > 1:
        *inputs, targets = data.tensors
        return (inputs[0] if len(inputs) == 1 else tuple(inputs)), targets
    return None


def _are_arrays(value: Any) -> bool:
    """True for a tensor or array with a sample an entry, or a tuple or mapping of them."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim > 0
    parts: Sequence[Any] = list(value.values()) if isinstance(value, Mapping) else value
    return isinstance(value, Mapping | tuple) and len(parts) > 0 and all(map(_are_arrays, parts))


def _shuffled(name: str, inputs: Inputs, targets: Any, seed: int) -> Split:
    """In memory and shuffled, so that its head is a fair sample of data sorted by class, too."""
    try:
        split = Split(inputs, _single_precision(targets))
        return split.take(torch.randperm(len(split), generator=torch.Generator().manual_seed(seed)))
    except (ValueError, TypeError, IndexError) as error:
        raise DataError(f"{name}: {short(first_line(error))}. Remedy: tensors with a sample an entry") from error


def _single_precision(targets: Any) -> Any:
    """numpy's and Python's numbers come as float64."""
    return map_tensors(lambda tensor: tensor.float() if tensor.dtype == torch.float64 else tensor, targets)


def _is_map(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")
