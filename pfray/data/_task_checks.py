"""Checks of a task in use: its classes, its augmentation, and that it can be sent to workers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from ray import cloudpickle
from torch import Tensor

from pfray.data._split import in_memory
from pfray.data._split_checks import ignored_label
from pfray.errors import DataError, first_line, short
from pfray.nn.inputs import map_tensors, named_tensors
from pfray.task import SPLITS, Split, Task, top1
from pfray.utils.random_state import kept_generators
from pfray.utils.user_code import place_of

# Class numbers named in a remark.
MOST = 10


def check_task(task: Task) -> list[str]:
    """Remarks on the data for readers of the results, a line each. Raises DataError if no run makes sense.

    Augmentation is tried on two samples; the global random generators are restored.
    """
    title = f"task {short(str(task.name))}"
    remarks = _classes(title, task)
    for name, inputs in named_tensors(in_memory(task.train).inputs, "inputs"):
        value = inputs[0].flatten()[:1]
        numbers = inputs.is_floating_point() or inputs.dtype == torch.uint8
        if numbers and (inputs[0] == value).all() and (inputs == value).all():
            remarks.append(f"every number in the training {name} is {value.item():g}: nothing can be learned from them")
    _check_augmentation(title, task)
    _check_sendable(title, task)
    return remarks


def without_class_order(task: Task) -> tuple[Task, list[str]]:
    """(the task with every split shuffled that has its classes one after the other, a remark on each).

    The head of a split has to be a fair sample: batch norms and calibration see that of the training data, a search
    that of the validation data.
    """
    shuffled: dict[str, Split] = {}
    made: dict[int, Split] = {}  # a split may serve as two
    for name in SPLITS:
        split = getattr(task, name)
        if isinstance(split, Split) and _has_class_order(split.targets):
            order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
            shuffled[name] = made.setdefault(id(split), split.take(order))
    remarks = [f"the {name} split has its classes one after the other, and is shuffled" for name in shuffled]
    return (replace(task, **shuffled) if shuffled else task), remarks  # type: ignore[arg-type]


def _has_class_order(targets: Any) -> bool:
    """True for class numbers ``(M,)`` of which each appears in one stretch alone, at least twice on average."""
    if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.dtype != torch.int64:
        return False
    classes = len(targets.unique())
    return 1 < classes <= len(targets) // 2 and int((targets[1:] != targets[:-1]).sum()) == classes - 1


def _classes(title: str, task: Task) -> list[str]:
    """Remarks on classes without samples. Raises DataError if the training split has a single class."""
    targets = in_memory(task.train).targets
    labelled = task.score is top1 or ignored_label(task.loss) is not None
    whole = isinstance(targets, Tensor) and targets.dtype == torch.int64
    if not labelled or not whole or task.num_outputs in (None, 1):
        return []
    remarks = []
    for name in SPLITS:
        split = getattr(task, name)
        if not isinstance(split, Split):
            continue  # a sample of many classes lacks some
        own = split.targets.flatten()
        counts = torch.bincount(own[(own >= 0) & (own < task.num_outputs)], minlength=task.num_outputs)
        present, missing = int((counts > 0).sum()), (counts == 0).nonzero().flatten().tolist()
        if name == "train" and present < 2:
            found = f"only class {int(counts.argmax())}" if present else "no class"
            raise DataError(
                f"{title}: the train split has {found} of {task.num_outputs}, and there is nothing to tell apart. "
                "Remedy: samples of every class, shuffled before they are split"
            )
        if missing:
            some = ", ".join(str(number) for number in missing[:MOST])
            more = f" and {len(missing) - MOST} more" if len(missing) > MOST else ""
            remarks.append(
                f"the {name} split has no sample of {len(missing)} of {task.num_outputs} classes: {some}{more}"
            )
    return remarks


def _check_augmentation(title: str, task: Task) -> None:
    if task.augment is None:
        return
    inputs = task.train.head(2).inputs
    # A copy, because the augmentation may work in place.
    with kept_generators():
        try:
            changed: Any = task.augment(map_tensors(torch.clone, inputs), torch.Generator().manual_seed(0))
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{title}: augment fails on two training inputs ({type(error).__name__}: {first_line(error)})"
                f"{place_of(error)}. Remedy: a function of (inputs, generator)"
            ) from error
    if type(changed) is not type(inputs):
        raise DataError(
            f"{title}: augment gives a {type(changed).__name__}. Remedy: return a "
            f"{type(inputs).__name__.lower()}, as it was given"
        )
    for (name, own), (_, given) in zip(named_tensors(changed), named_tensors(inputs), strict=False):
        if own.shape != given.shape or own.dtype != given.dtype:
            raise DataError(
                f"{title}: augment makes {own.dtype} {tuple(own.shape)} of {given.dtype} {tuple(given.shape)}{name}. "
                "Remedy: return inputs of the same type and shape"
            )
        if not torch.isfinite(own).all():
            raise DataError(f"{title}: augment gives NaN or infinite inputs. Remedy: finite numbers")


def _check_sendable(title: str, task: Task) -> None:
    """Raise DataError if cloudpickle, by which Ray sends the task to trials, fails."""
    for name in SPLITS:
        split = getattr(task, name)
        try:
            cloudpickle.dump(None if isinstance(split, Split) else split, _Nowhere())
        except Exception as error:
            raise DataError(
                f"{title}: the {name} data cannot be sent to workers ({first_line(error)}). Remedy: a data set without "
                "open files, locks, generators or connections, which it may open when it is first read"
            ) from error
    functions = (task.loss, task.score, task.soft_loss, task.output, task.evaluate, task.augment)
    try:
        cloudpickle.dumps(functions)
    except Exception as error:
        raise DataError(
            f"{title}: its loss, score, soft_loss, output, evaluate or augment cannot be sent to workers "
            f"({first_line(error)}). Remedy: functions without open files, locks or generators"
        ) from error


class _Nowhere:
    """A file that forgets what is written, since data may be large."""

    def write(self, content: Any) -> int:
        return memoryview(content).nbytes
