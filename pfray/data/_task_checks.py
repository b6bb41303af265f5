"""Checks of a task in use: its classes, its augmentation, and that it can be sent to workers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from ray import cloudpickle
from torch import Tensor

from pfray.data._split_checks import ignored_label
from pfray.errors import DataError, first_line, short
from pfray.task import SPLITS, Task, top1
from pfray.utils.random_state import kept_generators

# Class numbers named in a remark.
MOST = 10


def check_task(task: Task) -> list[str]:
    """Remarks on the data for readers of the results, a line each. Raises DataError if no run makes sense.

    Augmentation is tried on two samples; the global random generators are restored.
    """
    title = f"task {short(str(task.name))}"
    remarks = _classes(title, task)
    inputs, value = task.train.inputs, task.train.inputs[0].flatten()[0]
    if (inputs[0] == value).all() and (inputs == value).all():
        remarks.append(f"every number in the training inputs is {value.item():g}: nothing can be learned from them")
    _check_augmentation(title, task)
    _check_sendable(title, task)
    return remarks


def _classes(title: str, task: Task) -> list[str]:
    """Remarks on classes without samples. Raises DataError if the training split has a single class."""
    targets = task.train.targets
    labelled = task.score is top1 or ignored_label(task.loss) is not None
    if not labelled or targets.dtype != torch.int64 or task.num_outputs == 1:
        return []
    remarks = []
    for name in SPLITS:
        own = getattr(task, name).targets.flatten()
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
    inputs = task.train.inputs[:2]
    # A copy, because the augmentation may work in place.
    with kept_generators():
        try:
            changed: Any = task.augment(inputs.clone(), torch.Generator().manual_seed(0))
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{title}: augment fails on two training inputs ({type(error).__name__}: {first_line(error)}). "
                "Remedy: a function of (inputs, generator)"
            ) from error
    if not isinstance(changed, Tensor):
        raise DataError(f"{title}: augment gives a {type(changed).__name__}. Remedy: return a tensor, as it was given")
    if changed.shape != inputs.shape or changed.dtype != inputs.dtype:
        raise DataError(
            f"{title}: augment makes {changed.dtype} {tuple(changed.shape)} of {inputs.dtype} {tuple(inputs.shape)}. "
            "Remedy: return inputs of the same type and shape"
        )
    if not torch.isfinite(changed).all():
        raise DataError(f"{title}: augment gives NaN or infinite inputs. Remedy: finite numbers")


def _check_sendable(title: str, task: Task) -> None:
    """Raise DataError if cloudpickle, by which Ray sends the task to trials, fails."""
    small = replace(task, train=task.train.head(1), validation=task.validation.head(1), test=task.test.head(1))
    try:
        cloudpickle.dumps(small)
    except Exception as error:
        raise DataError(
            f"{title}: its loss, score, soft_loss or augment cannot be sent to workers ({first_line(error)}). "
            "Remedy: functions without open files, locks or generators"
        ) from error
