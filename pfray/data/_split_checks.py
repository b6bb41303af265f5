"""Checks of a task's splits: tensors that fit together, labels in range, finite values.

Labels and floats are read once, at about 7 GB/s: 60,000 CIFAR images take a tenth of a second as float32, and no time
as bytes, which are always finite.

Notation: M samples in a split, K outputs of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.data._split import Split, in_memory
from pfray.errors import DataError
from pfray.nn.inputs import named_tensors

# Types that can be indexed, stored as numpy arrays, and converted to float32 without losing sign or imaginary part.
TYPES = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
    torch.float16, torch.float32, torch.float64,
)  # fmt: skip
# What data sets of segmentation have where there is no class.
VOID = 255
LARGEST = torch.finfo(torch.float32).max


def check_splits(
    title: str, splits: Mapping[str, Any], num_outputs: int | None, loss: Callable[..., Any], top1: bool
) -> None:
    """Raise DataError, one line that names the split, for data that cannot be trained on or measured.

    title: begins each message. splits: train, validation and test. Of those that are no ``Split`` in memory the first
    samples are checked. top1: True if the score compares class numbers with the largest output.
    """
    samples = {name: in_memory(split) for name, split in splits.items()}
    for name, split in samples.items():
        _check_form(f"{title}: the {name} split", split.inputs, split.targets)
    first, train = next(iter(samples.items()))
    for name, split in samples.items():
        for part in ("inputs", "targets"):
            own, other = _kinds(getattr(split, part)), _kinds(getattr(train, part))
            # Batches that are read one by one may be padded to lengths of their own.
            if own != other and split is splits[name]:
                raise DataError(
                    f"{title}: the {name} split's {part} are {own} a sample, and those of the {first} split "
                    f"{other}. Remedy: the same shape and type in every split"
                )
    for name, split in samples.items():
        for part in ("inputs", "targets"):
            for where, tensor in named_tensors(getattr(split, part), part):
                _check_finite(f"{title}: the {name} split's {where}", tensor)
    kept_out, targets = ignored_label(loss), train.targets
    if not isinstance(targets, Tensor) or num_outputs is None:
        return
    if top1 or (kept_out is not None and not targets.is_floating_point()):
        for name, split in samples.items():
            # An ignored label makes sense in training; the accuracy would count it as a mistake.
            ignored = None if top1 and name != first else kept_out
            if name != first or kept_out is not None:
                where = f"{title}: the {name} split's targets"
                check_labels(where, split.targets, num_outputs, top1, ignored, _classes(samples.values(), kept_out))
    elif kept_out is not None:
        _check_probabilities(title, targets, num_outputs)


def ignored_label(loss: Callable[..., Any]) -> int | None:
    """The label that a cross entropy ignores; None for other and unknown losses."""
    if isinstance(loss, nn.CrossEntropyLoss):
        return int(loss.ignore_index)
    if isinstance(loss, partial) and loss.func is F.cross_entropy:
        return int(loss.keywords.get("ignore_index", -100))
    return -100 if loss is F.cross_entropy else None


def check_labels(
    where: str, targets: Tensor, num_outputs: int, top1: bool, ignored: int | None, known: Sequence[Tensor] = ()
) -> None:
    """Raise DataError unless targets are int64 from 0 to K - 1, one a sample for ``top1``.

    where: begins the message. known: ``_classes`` of all splits, the training split's first, for the remedy; none for a
    batch.
    """
    if targets.dtype != torch.int64:
        remedy = "targets.long()" if not targets.is_floating_point() else "class numbers, or a score of the task's own"
        raise DataError(
            f"{where} are {_type(targets)}, and class numbers are int64, from 0 to {num_outputs - 1}. Remedy: {remedy}"
        )
    if top1 and targets.dim() != 1:
        raise DataError(
            f"{where} have the shape {tuple(targets.shape)}, and the score top1 needs one class number a sample, "
            f"({len(targets)},). Remedy: targets.argmax(1) where they are one-hot, or a score of the task's own"
        )
    low, high = (int(extreme) for extreme in torch.aminmax(targets))
    if low >= 0 and high < num_outputs:
        return
    wrong = (targets < 0) | (targets >= num_outputs)
    if ignored is not None:
        wrong &= targets != ignored
        if not wrong.any():
            return
    index = int(wrong.flatten().nonzero()[0])
    label, sample = int(targets.flatten()[index]), index // max(1, targets[0].numel())
    count = int(wrong.sum())
    # The loss ignores the label in training; a mean over an evaluation split would count it.
    also = " (ignored labels are for training alone)" if label == -100 and ignored is None else ""
    own = targets if ignored is None else targets[targets != ignored]
    raise DataError(
        f"{where} hold the label {label} (sample {sample}, {count} in all) and run from {int(own.min())} to "
        f"{int(own.max())}; allowed are 0 to {num_outputs - 1}{also}. Remedy: "
        f"{_label_remedy(own, known, num_outputs, ignored)}"
    )


def _classes(splits: Iterable[Split], ignored: int | None) -> list[Tensor]:
    """Class numbers of each split, without the ignored one; splits with other targets are left out."""
    targets = (split.targets for split in splits)
    found = [part.unique() for part in targets if isinstance(part, Tensor) and part.dtype == torch.int64]
    return [part if ignored is None else part[part != ignored] for part in found]


def _label_remedy(targets: Tensor, known: Sequence[Tensor], num_outputs: int, ignored: int | None) -> str:
    """targets: without the ignored label."""
    every = torch.cat([targets.unique(), *known]).unique()
    low, high = int(every.min()), int(every.max())
    wrong = targets[(targets < 0) | (targets >= num_outputs)].unique()
    if num_outputs == 1:
        return (
            "a model with an output for each class; or targets.float()[:, None] and a loss for one logit, "
            "torch.nn.functional.binary_cross_entropy_with_logits"
        )
    if low == 1 and high == num_outputs:
        return "labels start at 0: targets - 1"
    if len(wrong) == 1 and ignored is not None and (int(wrong) < 0 or int(wrong) == VOID):
        return (
            f"loss=torch.nn.CrossEntropyLoss(ignore_index={int(wrong)}) where it means no class; otherwise correct the "
            "labels or leave these samples out"
        )
    if low >= 0 and known and len(every) <= num_outputs:
        return "number the classes from 0, as torch.unique(targets, return_inverse=True)[1] does"
    remedy = "correct the labels or leave these samples out"
    if low < 0:
        return remedy
    lacking = known and not torch.isin(wrong, known[0]).any()
    return f"{remedy}{', as the train split lacks this class' if lacking else ''}, or num_outputs={high + 1}"


def _check_form(where: str, inputs: Any, targets: Any) -> None:
    for part, value in (("inputs", inputs), ("targets", targets)):
        found = named_tensors(value, part)
        if not found or isinstance(value, np.ndarray):
            _check_tensor(f"{where}'s {part}", part, value)
        for name, tensor in found:
            _check_tensor(f"{where}'s {name}", part, tensor)
    counts = [_count(inputs), _count(targets)]
    if counts[0] != counts[1]:
        raise DataError(f"{where} has {counts[0]} inputs but {counts[1]} targets. Remedy: one target a sample")
    if not counts[0]:
        raise DataError(f"{where} is empty. Remedy: put samples into every split")
    if isinstance(inputs, Tensor) and (inputs.dim() < 2 or not inputs[0].numel()):
        raise DataError(
            f"{where}'s inputs have the shape {tuple(inputs.shape)}. Remedy: (M, C, H, W) for M images, (M, F) for M "
            "rows of F features"
        )
    if isinstance(targets, Tensor) and not targets.numel():
        raise DataError(f"{where}'s targets have the shape {tuple(targets.shape)}. Remedy: a target for every sample")


def _count(value: Any) -> int:
    """Samples in the inputs or targets; a list has one value for each."""
    if isinstance(value, list):
        return len(value)
    return next((len(tensor) for _, tensor in named_tensors(value) if tensor.dim()), 0)


def _check_tensor(where: str, part: str, value: Any) -> None:
    if isinstance(value, np.ndarray):
        raise DataError(
            f"{where} are a numpy array ({value.dtype}, {value.shape}), not a tensor. Remedy: torch.from_numpy({part})"
        )
    if not isinstance(value, Tensor):
        raise DataError(f"{where} are a {type(value).__name__}, not a tensor. Remedy: torch.as_tensor({part})")
    if value.is_nested or value.layout != torch.strided:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        remedy = "samples of one shape, stacked" if value.is_nested else f"{part}.to_dense()"
        raise DataError(f"{where} are a tensor of the layout {kind}, not a dense one. Remedy: {remedy}")
    if value.device.type != "cpu":
        remedy = "a tensor that holds values" if value.is_meta else f"{part}.cpu()"
        raise DataError(f"{where} are on the device {value.device}, and data is kept on the CPU. Remedy: {remedy}")
    if value.dtype not in TYPES:
        remedy = f"{part}.dequantize()" if value.is_quantized else f"{part}.float()"
        if value.is_complex():
            remedy = f"torch.view_as_real({part}), or their magnitude"
        allowed = ", ".join(str(known).removeprefix("torch.") for known in TYPES)
        raise DataError(f"{where} are of the type {_type(value)}; allowed are {allowed}. Remedy: {remedy}")
    if not value.dim():
        raise DataError(f"{where} are a single number. Remedy: a tensor with one entry a sample, (M, ...)")


def _check_finite(where: str, value: Tensor) -> None:
    if not value.is_floating_point() or not value.numel():
        return
    # The extremes are NaN where any value is, and take a thirtieth of the time of torch.isfinite.
    low, high = (float(extreme) for extreme in torch.aminmax(value))
    if max(-low, high) <= LARGEST:
        return
    bad = ~(value.abs() <= LARGEST)
    samples = bad.flatten(1).any(1) if value.dim() > 1 else bad
    index = int(samples.nonzero()[0])
    found = float(value[index][bad[index]].flatten()[0])
    raise DataError(
        f"{where} hold {found:g} in {int(samples.sum())} of {len(value)} samples, the first of them sample {index}; "
        f"allowed are finite numbers up to {LARGEST:.2g}. Remedy: leave these samples out, or mend them"
    )


def _check_probabilities(title: str, targets: Tensor, num_outputs: int) -> None:
    """Raise DataError unless float targets of a cross entropy have a probability for each class on the second axis."""
    if targets.dim() < 2 or targets.shape[1] != num_outputs:
        raise DataError(
            f"{title}: targets are {_kind(targets)} a sample, and a cross entropy needs class numbers (int64), or a "
            f"probability for each of the {num_outputs} classes. Remedy: targets.long(), or a loss of the task's own"
        )


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _kind(value: Tensor) -> str:
    """``uint8 (3, 32, 32)``: type and shape of one sample."""
    return f"{_type(value)} {tuple(value.shape[1:])}"


def _kinds(value: Any) -> str:
    """``_kind`` of every tensor; samples in a list may differ, and only their number of values counts."""
    if isinstance(value, list):
        return f"a list of {type(value[0]).__name__}s" if value else "a list"
    named = [(name, _kind(tensor)) for name, tensor in named_tensors(value)]
    return ", ".join(f"{name.lstrip('.')} {kind}".strip() for name, kind in named)
