"""Models built for a task, with random weights, and checked against its loss and score."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pfray.errors import ConfigError, UnsupportedModel, first_line, short
from pfray.nn.inputs import tensors
from pfray.nn.modes import evaluating
from pfray.task import SPLITS, Split, Task, example_input
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
    channels = {"in_channels": int(shape[0])} if len(shape) and first.is_floating_point() else {}
    return {"num_outputs": task.num_outputs, **channels}


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


def check_output(model: nn.Module, task: Task) -> None:
    """Run two samples of every split through model, loss and score. Raises UnsupportedModel if they do not fit."""
    outputs = None
    try:
        for name in SPLITS:
            inputs, targets = _extremes(getattr(task, name))
            with evaluating(model):
                outputs = model(task.normalize(inputs))
            if not isinstance(outputs, Tensor):
                raise TypeError(f"it is a {type(outputs).__name__}, not one tensor")
            # The loss alone would let too few outputs pass where the targets happen to be small.
            if outputs.dim() > 1 and outputs.shape[1] < task.num_outputs:
                raise ValueError(f"{outputs.shape[1]} outputs are too few")
            _check_judged(task, name, outputs.float().clone(), targets)
    except (Exception, SystemExit) as error:
        raise UnsupportedModel(
            f"the model's output of shape {tuple(getattr(outputs, 'shape', ()))} does not fit the task "
            f"{short(str(task.name))}: {first_line(error)}. Remedy: a model with {task.num_outputs} outputs that takes "
            "any batch size, and a loss and score for them"
        ) from error


def _extremes(split: Split) -> tuple[Tensor, Tensor]:
    """The samples with the smallest and the largest target; a loss for fewer classes fails on one of them."""
    flat = split.targets.flatten(1) if split.targets.dim() > 1 else split.targets[:, None]
    found = torch.stack([flat.amin(1).float().argmin(), flat.amax(1).float().argmax()])
    return split.inputs[found], split.targets[found]


def _check_judged(task: Task, name: str, outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless the loss is one finite number with a gradient and the score one number a sample."""
    loss: Any = task.loss(outputs.requires_grad_(), targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"loss gives {_form(loss)}, not one number for the batch")
    if name == "train":
        if not loss.requires_grad:
            raise ValueError("loss has no gradient with respect to the outputs")
    elif torch.isfinite(outputs).all() and not torch.isfinite(loss):  # in training, both labels may be left out
        raise ValueError(f"loss is {loss.item():g} for two samples of the {name} split")
    scores: Any = task.score(outputs.detach(), targets)
    if not isinstance(scores, Tensor) or scores.shape != (len(outputs),):
        raise ValueError(f"score gives {_form(scores)}, not one number a sample")


def _form(value: object) -> str:
    return f"a shape of {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
