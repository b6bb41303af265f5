"""Tasks: data splits, loss and score of a model. Nothing else in pfray knows what a target value means.

Notation: M samples in a split, N in a batch, C x H x W one input, K outputs.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pfray.data._split_checks import check_splits
from pfray.errors import DataError, short, shown

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """One split in memory, already shuffled, so that its head is a fair sample.

    inputs: ``(M, C, H, W)`` uint8 for images, float32 for other data.
    targets: ``(M, ...)``; int64 class numbers for classification.
    Gradients with respect to either are dropped. Raises DataError for tensors of unequal lengths; ``Task`` checks the
    rest.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        tensors = [value for value in (self.inputs, self.targets) if isinstance(value, Tensor) and value.dim()]
        if len(tensors) == 2 and len(self.inputs) != len(self.targets):
            raise DataError(
                f"a split has {len(self.inputs)} inputs but {len(self.targets)} targets. Remedy: one target a sample"
            )
        for name in ("inputs", "targets"):
            value = getattr(self, name)
            # Tensors with gradients and negated views cannot become numpy arrays.
            if isinstance(value, Tensor) and (value.requires_grad or value.is_neg()):
                object.__setattr__(self, name, value.detach().resolve_neg())

    def __len__(self) -> int:
        return len(self.inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        # As numpy arrays, which Ray's object store maps into every worker without a copy.
        return _split_from_arrays, (self.inputs.numpy(), self.targets.numpy())

    def head(self, count: int | None) -> Split:
        """The first ``count`` samples; all of them for None."""
        return self if count is None else Split(self.inputs[:count], self.targets[:count])


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _split_from_arrays(inputs: np.ndarray, targets: np.ndarray) -> Split:
    with warnings.catch_warnings():
        # torch warns that the store's arrays are read-only, but nothing writes into a split.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return Split(torch.from_numpy(inputs), torch.from_numpy(targets))


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Scores ``(N,)`` of logits ``(N, K)`` and class numbers ``(N,)``: 1.0 if the largest logit is the right class."""
    return (outputs.argmax(1) == targets).float()


def soft_cross_entropy(outputs: Tensor, teacher_outputs: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (Hinton et al. 2015, section 2).

    The factor T^2 keeps the gradient's size independent of the temperature.
    """
    student = F.log_softmax(outputs / temperature, 1)
    teacher = F.log_softmax(teacher_outputs / temperature, 1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


@dataclass(frozen=True)
class Task:
    """Data, loss and score that a model is trained for and measured by.

    loss(outputs, targets): scalar mean over the batch.
    score(outputs, targets): ``(N,)``, higher is better; its mean over a split is reported as ``accuracy``.
    soft_loss(outputs, teacher_outputs, temperature): scalar, the distillation term.
    augment(inputs, generator): randomly changed inputs of a training batch, of the same type and shape.
    mean, std: one number a channel (or one for all), applied to inputs scaled to 0..1.
    classes: for a task with some classes of a data set, their numbers in the data set.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_outputs: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    score: Callable[[Tensor, Tensor], Tensor] = top1
    soft_loss: Callable[[Tensor, Tensor, float], Tensor] = soft_cross_entropy
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Raise DataError, one line, for splits and settings that no run can work with."""
        title = f"task {short(str(self.name))}"
        splits = {name: getattr(self, name) for name in SPLITS}
        for name, split in splits.items():
            if not isinstance(split, Split):
                raise DataError(
                    f"{title}: {name} is a {type(split).__name__}. Remedy: pfray.task.Split(inputs, targets)"
                )
        if isinstance(self.num_outputs, bool) or not isinstance(self.num_outputs, int) or self.num_outputs < 1:
            raise DataError(
                f"{title}: num_outputs is {shown(self.num_outputs)}. Remedy: how many outputs the model has, 1 or more"
            )
        for name in ("loss", "score", "soft_loss", "augment"):
            function = getattr(self, name)
            if not callable(function) and (function is not None or name != "augment"):
                raise DataError(f"{title}: {name} is {shown(function)}, which cannot be called. Remedy: a function")
        check_splits(title, splits, self.num_outputs, self.loss, self.score is top1)
        for name in ("mean", "std"):
            self._check_numbers(title, name, getattr(self, name))

    def _check_numbers(self, title: str, name: str, values: Any) -> None:
        if not isinstance(values, tuple | list) or not all(_is_number(value) for value in values):
            raise DataError(
                f"{title}: {name} is {shown(values)}. Remedy: a tuple of finite numbers, one for each channel or one "
                "for all"
            )
        if len(values) not in (1, self.input_shape[0]):
            raise DataError(
                f"{title}: {name} has {len(values)} numbers for inputs of {self.input_shape[0]} channels. "
                "Remedy: one for each channel, or one for all"
            )
        if name == "std" and min(values) <= 0:
            raise DataError(f"{title}: std is {shown(values)}, and inputs are divided by it. Remedy: numbers above 0")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of one input."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def has_soft_labels(self) -> bool:
        """True if a distance from a teacher's outputs is defined, by the default loss or a ``soft_loss`` of the task.
        """
        return self.loss is F.cross_entropy or self.soft_loss is not soft_cross_entropy

    def normalize(self, inputs: Tensor) -> Tensor:
        """Inputs in float32, scaled to 0..1 if they are uint8, minus mean, over std."""
        x = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.float()
        shape = (1, -1, *(1,) * (x.dim() - 2))
        return (x - x.new_tensor(self.mean).view(shape)) / x.new_tensor(self.std).view(shape)

    def batches(self, split: Split, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the split in order, normalized, without augmentation, for evaluation."""
        for start in range(0, len(split), size):
            part = slice(start, start + size)
            yield self.normalize(split.inputs[part].to(device)), split.targets[part].to(device)

    def fingerprint(self) -> str:
        """A hash of the splits' types, shapes and values, the classes and the normalization, for cache keys."""
        # The last bits of a mean depend on the number of threads.
        numbers = [[f"{value:.9g}" for value in values] for values in (self.mean, self.std)]
        digest = hashlib.sha256(repr((self.num_outputs, self.classes, *numbers)).encode())
        for split in (self.train, self.validation, self.test):
            for part in (split.inputs, split.targets):
                digest.update(repr((str(part.dtype), tuple(part.shape))).encode())
                digest.update(np.ascontiguousarray(part.numpy()).data)
        return digest.hexdigest()[:16]


def example_input(task: Task, device: torch.device | str = "cpu") -> Tensor:
    """The first training input ``(1, C, H, W)``, normalized."""
    return task.normalize(task.train.inputs[:1]).to(device)
