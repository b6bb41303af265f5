"""Tasks: data splits, loss and score of a model. Nothing else in pfray knows what a target value means.

Notation: M samples in a split, N in a batch, C x H x W one input, K outputs.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.data._function_checks import check_functions, check_output_choice
from pfray.data._split import Split, in_memory
from pfray.data._split_checks import check_labels, check_splits, ignored_label
from pfray.errors import DataError, UnsupportedModel, first_line, short, shown
from pfray.nn.inputs import Inputs, map_tensors, moved, named_tensors, tensors
from pfray.utils.user_code import called

__all__ = ["SPLITS", "Samples", "Split", "Task", "as_split", "example_input", "soft_cross_entropy", "top1", "top5"]

SPLITS = ("train", "validation", "test")
# Integers that are tokens, numbers of classes or masks, and go to the model as they are.
WHOLE = (torch.int64, torch.int32, torch.bool)


class Samples(Protocol):
    """A split, in memory (``Split``) or read from a data set batch by batch (``pfray/data/_stream.py``)."""

    def __len__(self) -> int: ...

    def head(self, count: int | None) -> Any:
        """The first ``count`` samples, in memory; all of them for None."""

    def batches(self, size: int, pinned: bool = False) -> Iterator[tuple[Inputs, Any]]:
        """(inputs, targets) of batches in order. pinned: what is read is put where a GPU copies from while it computes.
        """

    def steps(self, size: int) -> int:
        """Whole batches in an epoch, at least one."""

    def epochs(
        self, size: int, seeds: Sequence[int], rank: int = 0, world: int = 1, pinned: bool = False
    ) -> Generator[Iterator[tuple[Inputs, Any]], None, None]:
        """One process's part of each whole batch, epoch by epoch, in an order that depends on the epoch's seed."""


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Scores ``(N,)`` of logits ``(N, K)`` and class numbers ``(N,)``: 1.0 if the largest logit is the right class."""
    return (outputs.argmax(1) == targets).float()


def top5(outputs: Tensor, targets: Tensor) -> Tensor:
    """Scores ``(N,)`` of logits ``(N, K, ...)`` and class numbers: the share that are among the five largest logits."""
    best = outputs.topk(min(5, outputs.shape[1]), 1).indices
    right = (best == targets[:, None]).any(1).float()
    return right.flatten(1).mean(1) if right.dim() > 1 else right


def soft_cross_entropy(outputs: Tensor, teacher_outputs: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (Hinton et al. 2015, section 2).

    The factor T^2 keeps the gradient's size independent of the temperature. Outputs are ``(N, K, ...)``, with the mean
    over any further axes, such as pixels, as of the cross entropy.
    """
    positions = outputs.numel() // max(1, outputs.shape[0] * outputs.shape[1])
    student = F.log_softmax(outputs / temperature, 1)
    teacher = F.log_softmax(teacher_outputs / temperature, 1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2 / positions


@dataclass(frozen=True)
class Task:
    """Data, loss and metric that a model is trained for and measured by.

    train, validation, test: ``Split``s in memory, or streams.
    num_outputs: K, for models that are built for the task; None where the model is given and K means nothing.
    output: what loss, metric and soft labels read of a model's outputs: a key, an attribute or a position, or a
        function of the outputs; None for all of them.
    loss(outputs, targets): scalar mean over the batch.
    score(outputs, targets): the metric's value for each sample ``(N,)``; its mean over a split is reported. Or an
        object with ``update(outputs, targets)``, ``compute()`` and ``reset()``, as torchmetrics has, for a metric that
        is no mean over samples.
    metric_name, higher_is_better, is_share: of the score. A measurement's ``accuracy`` is its mean, negated if lower is
        better. A share, from 0 to 1, is printed in percent.
    evaluate(model): a number that replaces the mean score, for who has only that.
    soft_loss(outputs, teacher_outputs, temperature): scalar, the distillation term.
    augment(inputs, generator): randomly changed inputs of a training batch, of the same type and shape.
    mean, std: one number a channel (or one for all), applied to inputs of one tensor, scaled to 0..1 if they are bytes.
    classes: for a task with some classes of a data set, their numbers in the data set.
    """

    name: str
    train: Samples
    validation: Samples
    test: Samples
    num_outputs: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: Callable[[Any, torch.Generator], Any] | None = None
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy
    score: Any = top1
    soft_loss: Callable[[Any, Any, float], Tensor] = soft_cross_entropy
    classes: tuple[int, ...] | None = None
    output: str | int | Callable[[Any], Any] | None = None
    metric_name: str = "accuracy"
    higher_is_better: bool = True
    is_share: bool = True
    evaluate: Callable[[nn.Module], float] | None = None

    def __post_init__(self) -> None:
        """Raise DataError, one line, for splits and settings that no run can work with."""
        title = f"task {short(str(self.name))}"
        splits = {name: getattr(self, name) for name in SPLITS}
        for name, split in splits.items():
            if not hasattr(split, "head"):
                raise DataError(
                    f"{title}: {name} is a {type(split).__name__}. Remedy: pfray.task.Split(inputs, targets)"
                )
        outputs = self.num_outputs
        if outputs is not None and (isinstance(outputs, bool) or not isinstance(outputs, int) or outputs < 1):
            raise DataError(
                f"{title}: num_outputs is {shown(outputs)}. Remedy: how many outputs the model has, 1 or more"
            )
        plain = self.accumulates and not isinstance(self.score, type)
        names = ("loss", *(() if plain else ("score",)), "soft_loss", "augment", "evaluate")
        check_functions(title, {name: getattr(self, name) for name in names}, optional=("augment", "evaluate"))
        check_output_choice(title, self.output)
        check_splits(title, splits, self.num_outputs, self.loss, self.score is top1)
        for name in ("mean", "std"):
            self._check_numbers(title, name, getattr(self, name))

    def _check_numbers(self, title: str, name: str, values: Any) -> None:
        if not isinstance(values, tuple | list) or not all(_is_number(value) for value in values):
            raise DataError(
                f"{title}: {name} is {shown(values)}. Remedy: a tuple of finite numbers, one for each channel or one "
                "for all"
            )
        channels = (self.input_shape or (1,))[0]
        if len(values) not in (1, channels):
            raise DataError(
                f"{title}: {name} has {len(values)} numbers for inputs of {channels} channels. "
                "Remedy: one for each channel, or one for all"
            )
        if name == "std" and min(values) <= 0:
            raise DataError(f"{title}: std is {shown(values)}, and inputs are divided by it. Remedy: numbers above 0")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the first input, ``(C, H, W)`` for images."""
        return tuple(tensors(self.train.head(1).inputs)[0].shape[1:])

    @property
    def has_soft_labels(self) -> bool:
        """True if a distance from a teacher's outputs is defined, by the default loss or a ``soft_loss`` of the task.
        """
        return ignored_label(self.loss) is not None or self.soft_loss is not soft_cross_entropy

    def on(self, device: torch.device) -> Task:
        """The task with a loss, soft loss and score that are modules moved to ``device``, where the outputs are."""
        modules = {name: getattr(self, name) for name in ("loss", "soft_loss", "score")}
        moved = {name: copy.deepcopy(each).to(device) for name, each in modules.items() if isinstance(each, nn.Module)}
        if not moved:
            return self
        task = copy.copy(self)
        for name, each in moved.items():
            object.__setattr__(task, name, each)
        return task

    @property
    def accumulates(self) -> bool:
        """True if the score is an object that sees all batches before it has a value."""
        return all(callable(getattr(self.score, name, None)) for name in ("update", "compute", "reset"))

    def select(self, outputs: Any) -> Any:
        """The outputs that loss, score and soft labels read. Raises UnsupportedModel if the model's have none such."""
        wanted = self.output
        if wanted is None or (isinstance(outputs, Tensor) and not callable(wanted)):
            return outputs
        if callable(wanted):
            try:
                return wanted(outputs)
            except Exception as error:
                raise UnsupportedModel(
                    f"output={called(wanted)} fails on the model's outputs, a {type(outputs).__name__}: "
                    f"{type(error).__name__}: {first_line(error)}. Remedy: a function of the outputs that gives what "
                    "loss and metric read"
                ) from error
        try:
            by_name = isinstance(wanted, str) and hasattr(outputs, wanted) and not isinstance(outputs, dict)
            return getattr(outputs, str(wanted)) if by_name else outputs[wanted]
        except (KeyError, IndexError, TypeError) as error:
            raise UnsupportedModel(
                f"the model's outputs, a {type(outputs).__name__}, have no {shown(wanted)} ({first_line(error)}). "
                "Remedy: output=, the key or position of what the loss reads"
            ) from error

    def normalize(self, inputs: Inputs) -> Inputs:
        """Inputs as the model takes them: bytes scaled to 0..1, floats in float32, tokens and masks unchanged.

        The normalization, minus ``mean`` and over ``std``, is for inputs of one tensor.
        """
        if not isinstance(inputs, Tensor):
            return map_tensors(_in_float, inputs)
        if inputs.dtype in (torch.int64, torch.int32) and (tuple(self.mean), tuple(self.std)) == ((0.0,), (1.0,)):
            return inputs
        x = _in_float(inputs).float()  # a mask alone is an image of two colours
        shape = (1, -1, *(1,) * (x.dim() - 2))
        mean, std = x.new_tensor(self.mean).view(shape), x.new_tensor(self.std).view(shape)
        # In place where the numbers are new, because new memory for a large batch takes longer than the arithmetic.
        return (x - mean).div_(std) if x is inputs else x.sub_(mean).div_(std)

    def batches(self, split: Samples, size: int, device: torch.device) -> Iterator[tuple[Inputs, Any]]:
        """Batches of the split in order, normalized, without augmentation, for evaluation."""
        for inputs, targets in split.batches(size, device.type == "cuda"):
            yield self.normalize(moved(inputs, device)), self._checked(split, moved(targets, device))

    def training_batches(
        self, read: Iterable[tuple[Inputs, Any]], noise: torch.Generator, device: torch.device
    ) -> Iterator[tuple[Inputs, Any]]:
        """The batches ``read`` of the training split, augmented and normalized. noise: of the augmentation."""
        for inputs, targets in read:
            changed = inputs if self.augment is None else self.augment(inputs, noise)
            yield self.normalize(moved(changed, device)), self._checked(self.train, moved(targets, device))

    def _checked(self, split: Samples, targets: Any) -> Any:
        """``targets``, if they are class numbers in range where the data were not read before."""
        in_memory = all(isinstance(getattr(self, name), Split) for name in SPLITS)
        if in_memory or self.num_outputs is None or not isinstance(targets, Tensor):
            return targets
        ignored, is_top1 = ignored_label(self.loss), self.score is top1
        if is_top1 or (ignored is not None and not targets.is_floating_point()):
            name = next((f" of the {name} split" for name in SPLITS if getattr(self, name) is split), "")
            where = f"task {short(str(self.name))}: the targets of a batch{name}"
            check_labels(where, targets, self.num_outputs, is_top1, -100 if ignored is None else ignored)
        return targets

    def remarks(self, world: int = 1) -> list[str]:
        """What was found out while this process read the splits, such as a count of damaged images, a line each.

        world: workers of a training that have read them; all of them call this, and get the same lines.
        """
        streams = [split for name in SPLITS if hasattr(split := getattr(self, name), "remarks")]
        return [remark for split in streams for remark in split.remarks(world)]

    def fingerprint(self) -> str:
        """A hash of the splits' types, shapes and values, the classes and the normalization, for cache keys.

        Of data that are read batch by batch the number of samples and the first ones count.
        """
        # The last bits of a mean depend on the number of threads.
        numbers = [[f"{value:.9g}" for value in values] for values in (self.mean, self.std)]
        digest = hashlib.sha256(repr((self.num_outputs, self.classes, *numbers)).encode())
        for split in (self.train, self.validation, self.test):
            if not isinstance(split, Split):
                digest.update(repr(len(split)).encode())
            known = in_memory(split)
            for part in (known.inputs, known.targets):
                for _, tensor in named_tensors(part):
                    digest.update(repr((str(tensor.dtype), tuple(tensor.shape))).encode())
                    digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return digest.hexdigest()[:16]


def as_split(
    name: str, data: Any, adapt: Callable[[Any], Any] | None = None, seed: int = 0, length: int | None = None
) -> Samples:
    """The split ``name`` of a DataLoader, a data set, a list of samples or a pair of tensors, for a ``Task``.

    adapt(batch): (inputs, targets), for batches that are neither (inputs ..., targets) nor mappings with a label, of
    which the model gets all other tensors. seed: of the order. length: samples of an iterable data set that does not
    know it. Raises DataError.
    """
    from pfray.data._given import split_of  # it imports this module

    return split_of(name, data, adapt, None, seed, length)


def example_input(task: Task, device: torch.device | str = "cpu") -> Inputs:
    """The first training input as a batch of one, normalized: for images ``(1, C, H, W)``."""
    return task.normalize(moved(task.train.head(1).inputs, device))


def _in_float(tensor: Tensor) -> Tensor:
    """Bytes scaled to 0..1, other numbers in float32, tokens and masks unchanged."""
    if tensor.dtype == torch.uint8:
        return tensor.float().div_(255)
    return tensor if tensor.dtype in WHOLE else tensor.float()
