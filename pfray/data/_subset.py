"""A data set cut to some of its classes, for devices that meet no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pfray.errors import ConfigError, nearest
from pfray.task import Split, Task


def check_classes(wanted: object, known: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the classes named in the setting ``data.classes``, in its order.

    known: the names of all classes. Raises ConfigError for anything but a list of two or more of them.
    """
    allowed = f"Allowed: {', '.join(known)}"
    if not isinstance(wanted, list | tuple):
        raise ConfigError(f"data.classes: {wanted!r} is not a list of class names. {allowed}")
    names = [str(name) for name in wanted]
    for name in names:
        if name not in known:
            raise ConfigError(f"data.classes: unknown class '{name}'.{nearest(name, known)} {allowed}")
        if names.count(name) > 1:
            raise ConfigError(f"data.classes: '{name}' is given twice. Remedy: name each class once")
    if len(names) < 2:
        raise ConfigError(
            f"data.classes: {names} leaves nothing to tell apart. Remedy: name two classes or more. {allowed}"
        )
    return tuple(known.index(name) for name in names)


def keep_classes(task: Task, classes: Sequence[int]) -> Task:
    """The task with the samples of ``classes`` alone, renumbered from 0 in that order, and as many outputs.

    Splits and normalization stay as in the whole data set.
    """
    assert task.num_outputs is not None
    numbers = torch.full((task.num_outputs,), -1)
    numbers[list(classes)] = torch.arange(len(classes))

    def cut(split: Any) -> Split:
        targets = numbers[split.targets]
        return Split(split.inputs[targets >= 0], targets[targets >= 0])

    return replace(
        task, train=cut(task.train), validation=cut(task.validation), test=cut(task.test), num_outputs=len(classes),
        classes=tuple(classes),
    )  # fmt: skip
