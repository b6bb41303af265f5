"""Models built for a task, with random weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from pfray.errors import ConfigError, DataError, short
from pfray.nn.inputs import tensors
from pfray.task import Task, example_input
from pfray.utils.user_code import user_code

# Names that models' functions have for what the task determines, pfray's own first.
NAMES = {"num_outputs": ("num_outputs", "num_classes", "num_labels"), "in_channels": ("in_channels", "in_chans")}
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


def task_arguments(task: Task) -> dict[str, int]:
    """Arguments that a model's function may take from its task, by pfray's names.

    in_channels: channels of the first input, unless that holds whole numbers, such as tokens.
    """
    inputs = example_input(task)
    first = tensors(inputs)[0]
    shape = first.shape if isinstance(inputs, list) else first.shape[1:]
    outputs = {} if task.num_outputs is None else {"num_outputs": task.num_outputs}
    channels = {"in_channels": int(shape[0])} if len(shape) and first.is_floating_point() else {}
    return {**outputs, **channels}


def required_outputs(task: Task) -> int:
    """``num_outputs`` of the task, for a network that is made anew. Raises DataError if the task has none."""
    if task.num_outputs is None:
        raise DataError(
            f"task {short(str(task.name))} has no num_outputs, and a new network needs it. Remedy: num_outputs, how "
            "many outputs the model has"
        )
    return task.num_outputs


def build(
    kind: str,
    function: Callable[..., nn.Module],
    known: Mapping[str, int],
    settings: Mapping[str, Any],
    note: Callable[[str], None] | None = None,
) -> nn.Module:
    """The model of ``function(**settings)``, given also those ``task_arguments`` that it takes and no setting names.

    An argument goes by the first of its ``NAMES`` that the function has. A function of any keywords is tried with each
    name, and without. note: told of arguments that did not go by pfray's own names. Weights are drawn from torch's
    global generator. Raises ConfigError that names the section ``kind``.
    """
    named, state, refused = _named(function), torch.get_rng_state(), set[str]()
    while True:
        given = _given(function, known, settings, refused)
        listed = ", ".join(f"{name}={value}" for name, value in given.items())
        own = not refused and given.keys() <= known.keys()
        also = "" if own else f", which is given {listed or 'nothing'} from the task"
        torch.set_rng_state(state)  # a refused attempt may have drawn weights
        try:
            with user_code(kind, f"correct the settings of '{kind}'{also}"):
                model = function(**given, **settings)
        except ConfigError as error:
            match = _UNEXPECTED.search(str(error.__cause__)) if isinstance(error.__cause__, TypeError) else None
            if match is None or match[1] in named or match[1] not in given:
                raise
            refused.add(match[1])
            continue
        if note is not None and not own:
            note(f"{kind}: its function is given {listed or 'nothing'} from the task")
        return model


def _named(function: Callable[..., Any]) -> set[str]:
    """Keywords that a function names."""
    parameters = inspect.signature(function).parameters
    return {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _given(
    function: Callable[..., Any], known: Mapping[str, int], settings: Mapping[str, Any], refused: Collection[str]
) -> dict[str, int]:
    named, given = _named(function), {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    for argument, value in known.items():
        names = NAMES[argument]
        fitting = [name for name in names if name in named] or [n for n in names if takes_any and n not in refused]
        if fitting and not settings.keys() & {*names}:
            given[fitting[0]] = value
    return given
