"""Models built for a task, with random weights, and checked against its loss and score."""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pfray.data._split import in_memory
from pfray.errors import ConfigError, DataError, UnsupportedModel, first_line, short
from pfray.nn.inputs import Inputs, call, count, floats, map_tensors, tensors
from pfray.nn.modes import evaluating
from pfray.task import SPLITS, Task, example_input
from pfray.utils.random_state import kept_generators
from pfray.utils.user_code import place_of, user_code

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


def check_output(model: nn.Module, task: Task) -> None:
    """Run two samples of every split through model, loss and score, and of the training split in training mode too.

    Raises UnsupportedModel if they do not fit.
    """
    outputs: Any = None
    mode = ""
    try:
        for name in SPLITS:
            inputs, targets = _extremes(getattr(task, name))
            inputs = task.normalize(inputs)
            with evaluating(model):
                outputs = task.select(call(model, inputs))
            # The loss alone would let too few outputs pass where the targets happen to be small.
            wide = isinstance(outputs, Tensor) and outputs.dim() > 1
            if task.num_outputs and wide and outputs.shape[1] < task.num_outputs:
                raise ValueError(f"{outputs.shape[1]} outputs are too few")
            _check_judged(task, name, map_tensors(torch.clone, floats(outputs)), targets, count(inputs))
        mode = " in training mode"
        inputs, targets = _extremes(task.train)
        outputs = _training_outputs(model, task, inputs)
        if outputs is not None:
            task.loss(floats(outputs), targets)
        if task.evaluate is not None:
            with evaluating(model):
                _check_number("evaluate", task.evaluate(model))
    except (Exception, SystemExit) as error:
        if isinstance(error, UnsupportedModel):
            raise
        wanted = f"{task.num_outputs} outputs" if task.num_outputs else "outputs that the loss reads"
        raise UnsupportedModel(
            f"the model's output{mode}, {_form(outputs)}, does not fit the task {short(str(task.name))}: "
            f"{first_line(error)}{place_of(error)}. Remedy: a model with {wanted} that takes any batch size, and a "
            "loss and score for them; or output=, which says what they read"
        ) from error


def _training_outputs(model: nn.Module, task: Task, inputs: Inputs) -> Any:
    """Outputs in training mode, of a copy; None where that cannot be tried, as of a batch norm on few samples."""
    try:
        clone = copy.deepcopy(model).train()
        with kept_generators(), torch.no_grad():
            made = call(clone, task.normalize(inputs))
    except Exception:
        return None
    return task.select(made)


def _extremes(split: Any) -> tuple[Inputs, Any]:
    """The samples with the smallest and the largest target; a loss for fewer classes fails on one of them."""
    known = in_memory(split)
    if not isinstance(known.targets, Tensor):
        return known.head(2).inputs, known.head(2).targets
    flat = known.targets.flatten(1) if known.targets.dim() > 1 else known.targets[:, None]
    found = known.take(torch.stack([flat.amin(1).float().argmin(), flat.amax(1).float().argmax()]))
    return found.inputs, found.targets


def _check_judged(task: Task, name: str, outputs: Any, targets: Any, samples: int) -> None:
    """Raise ValueError unless the loss is one finite number with a gradient and the score one number a sample."""
    given = [output.requires_grad_() for output in tensors(outputs) if output.is_floating_point()]
    loss: Any = task.loss(outputs, targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"loss gives {_form(loss)}, not one number for the batch")
    if name == "train":
        if not loss.requires_grad:
            raise ValueError("loss has no gradient with respect to the outputs")
    # In training, both labels may be left out.
    elif all(bool(torch.isfinite(output).all()) for output in given) and not torch.isfinite(loss):
        raise ValueError(f"loss is {loss.item():g} for two samples of the {name} split")
    if task.evaluate is not None:
        return
    if task.accumulates:
        metric = copy.deepcopy(task.score)
        metric.reset()
        metric.update(map_tensors(Tensor.detach, outputs), targets)
        _check_number("the metric's compute()", metric.compute())
        return
    scores: Any = task.score(map_tensors(Tensor.detach, outputs), targets)
    if not isinstance(scores, Tensor) or scores.shape != (samples,):
        raise ValueError(f"score gives {_form(scores)}, not one number a sample")
    _check_number("score", scores.float().mean())


def _check_number(what: str, value: Any) -> None:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what} gives a {type(value).__name__}, not one number") from error
    if not math.isfinite(number):
        raise ValueError(f"{what} gives {number:g}")


def _form(value: object) -> str:
    return f"a shape of {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
