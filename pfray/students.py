"""Models that take the teacher's place: built for its task, with random weights of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pfray.components import call, check_arguments
from pfray.errors import UnsupportedModel, first_line
from pfray.measure import evaluating, place
from pfray.task import Task


def task_arguments(task: Task) -> dict[str, int]:
    """What a model's function is given of its task, as far as it takes it."""
    return {"num_outputs": task.num_outputs, "in_channels": task.input_shape[0]}


def build(
    kind: str, function: Callable[..., nn.Module], known: Mapping[str, int], settings: Mapping[str, Any]
) -> nn.Module:
    """What ``function`` makes of its settings and, where it takes them, the ``task_arguments``; weights are drawn from
    torch's own generator. Raises ConfigError, naming the section ``kind``, where it fails."""
    taken = {key: value for key, value in known.items() if not check_arguments(kind, function, {key: value})}
    return call(kind, function, {**taken, **settings})


def check_output(model: nn.Module, task: Task) -> None:
    """Two samples through model, loss and score, so that what does not fit is found now and not in a trial.

    Raises UnsupportedModel.
    """
    inputs, targets = task.normalize(task.train.inputs[:2]), task.train.targets[:2]
    outputs = None
    try:
        with evaluating(model):
            outputs = model(inputs)
        task.loss(outputs, targets)
        scores = task.score(outputs, targets)
        if scores.shape != (len(inputs),):
            raise ValueError(f"score gives a shape of {tuple(scores.shape)}, not one number a sample")
        # The loss alone would let too few outputs pass where the first targets happen to be small.
        if outputs.dim() > 1 and outputs.shape[1] < task.num_outputs:
            raise ValueError(f"{outputs.shape[1]} outputs are too few")
    except Exception as error:
        raise UnsupportedModel(
            f"the model's output of shape {tuple(getattr(outputs, 'shape', ()))} does not fit the task {task.name}: "
            f"{first_line(error)}. Remedy: a model with {task.num_outputs} outputs that takes any batch size, and a "
            "loss and score for them"
        ) from error


def become(model: nn.Module, student: nn.Module) -> None:
    """Make ``model`` the student, in place, on the device that it is on: whoever holds it then holds the student."""
    place(student, next(model.parameters()).device)
    model.__class__ = type(student)
    vars(model).clear()
    vars(model).update(vars(student))
