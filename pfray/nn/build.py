"""Models built for a task, with random weights, and checked against its loss and score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pfray.errors import UnsupportedModel, first_line, short
from pfray.nn.modes import evaluating
from pfray.task import SPLITS, Split, Task
from pfray.utils.signatures import call, check_arguments


def task_arguments(task: Task) -> dict[str, int]:
    """Arguments that a model's function may take from its task."""
    return {"num_outputs": task.num_outputs, "in_channels": task.input_shape[0]}


def build(
    kind: str, function: Callable[..., nn.Module], known: Mapping[str, int], settings: Mapping[str, Any]
) -> nn.Module:
    """The model of ``function(**settings)``, given also those ``task_arguments`` that it takes.

    Weights are drawn from torch's global generator. Raises ConfigError that names the section ``kind``.
    """
    taken = {key: value for key, value in known.items() if not check_arguments(kind, function, {key: value})}
    return call(kind, function, {**taken, **settings})


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
