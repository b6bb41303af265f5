"""Checks that loss, metric and evaluation fit a model's outputs, by a trial with two samples of every split.

The task's own word for a metric is ``score``. Notation: N samples in a batch, K outputs.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pfray.data._split import in_memory
from pfray.data._split_checks import ignored_label
from pfray.errors import PfrayError, UnsupportedModel, first_line, short
from pfray.nn.inputs import Inputs, call, count, floats, form, map_tensors, tensors
from pfray.nn.modes import evaluating
from pfray.task import SPLITS, Task, soft_cross_entropy
from pfray.utils.random_state import kept_generators
from pfray.utils.user_code import called, failed_call, place_of

SCORE = "a function of (outputs, targets) that gives a number for each sample, a tensor of the shape (N,)"
ONE_NUMBER = (
    "a metric of one number: the mean of several (average='macro' in torchmetrics), or one metric of a collection"
)
ONE_LOGIT = (
    "torch.nn.functional.mse_loss for numbers, binary_cross_entropy_with_logits for two classes by one logit, or a "
    "model with an output for each class"
)
ANY_LOSS = "a loss(outputs, targets) for these, as the cross entropy is for (N, K) and class numbers (N,)"
EVALUATE = "a function of the model that returns one finite number"


def check_output(model: nn.Module, task: Task) -> None:
    """Run two samples of every split through model, loss and metric, and of the training split in training mode too.

    Raises UnsupportedModel if they do not fit.
    """
    for name in SPLITS:
        inputs, targets = _extremes(getattr(task, name))
        outputs = _outputs(model, task, inputs, name)
        # The loss alone would let too few outputs pass where the targets happen to be small.
        wide = isinstance(outputs, Tensor) and outputs.dim() > 1
        if task.num_outputs and wide and outputs.shape[1] < task.num_outputs:
            raise UnsupportedModel(
                f"the model's outputs, {form(outputs)}, do not fit the task {short(str(task.name))}: "
                f"{outputs.shape[1]} outputs are too few. Remedy: a model with {task.num_outputs} outputs"
            )
        _check_loss(task, outputs, targets, name)
        _check_soft_loss(task, outputs)
        if task.evaluate is None:
            _check_score(task, map_tensors(Tensor.detach, outputs), targets, count(inputs))
    inputs, targets = _extremes(task.train)
    outputs = _training_outputs(model, task, inputs)
    if outputs is not None:
        _loss(task, floats(outputs), targets, " in training mode")
    if task.evaluate is not None:
        with _tried("evaluate", task.evaluate, "", EVALUATE), evaluating(model):
            value = task.evaluate(model)
        _check_finite(f"evaluate={called(task.evaluate)} gives", value, EVALUATE)


def _outputs(model: nn.Module, task: Task, inputs: Inputs, name: str) -> Any:
    """What the task reads of the outputs, as floats that gradients can begin from."""
    inputs = task.normalize(inputs)
    try:
        with evaluating(model):
            made = call(model, inputs)
    except (Exception, SystemExit) as error:
        raise UnsupportedModel(
            f"the model {type(model).__name__} fails on two samples of the {name} split, {form(inputs)}: "
            f"{first_line(error)}{place_of(error)}. Remedy: a model that takes any batch size, and inputs of one form "
            "in every split"
        ) from error
    return map_tensors(torch.clone, floats(task.select(made)))


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


def _check_loss(task: Task, outputs: Any, targets: Any, name: str) -> None:
    """The loss is one finite number, and in training has a gradient."""
    given = [output.requires_grad_() for output in tensors(outputs) if output.is_floating_point()]
    loss = _loss(task, outputs, targets)
    title = f"loss={called(task.loss)}"
    logits = isinstance(outputs, Tensor) and outputs.dim() > 1 and outputs.shape[1] > 1
    if ignored_label(task.loss) is not None and not logits:  # torch takes (N,) for one sample's
        raise UnsupportedModel(
            f"{title} needs logits (N, K) of 2 or more classes, and the outputs are {form(outputs)}. Remedy: "
            f"{ONE_LOGIT}"
        )
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        remedy = "reduction='mean', or .mean() of what it gives"
        if not isinstance(loss, Tensor):
            remedy = "return the tensor of a batch's mean loss" + (", without .item()" if loss is not None else "")
        raise UnsupportedModel(
            f"{title} gives {form(loss)}, not one number for the batch, of outputs {form(outputs)} and targets "
            f"{form(targets)}. Remedy: {remedy}"
        )
    if name == "train":
        if not loss.requires_grad:
            raise UnsupportedModel(
                f"{title} has no gradient with respect to the outputs. Remedy: no detach(), argmax() or "
                "torch.no_grad() in it"
            )
    # In training, both labels may be left out.
    elif all(bool(torch.isfinite(output).all()) for output in given) and not torch.isfinite(loss):
        raise UnsupportedModel(
            f"{title} is {loss.item():g} for two samples of the {name} split, whose outputs are finite. Remedy: a loss "
            "that is finite for them"
        )
    shape = alike(outputs, targets)
    if shape is not None and _broadcasts(task, outputs, targets, loss):
        raise _broadcast(task, outputs, targets, shape)


def _check_soft_loss(task: Task, outputs: Any) -> None:
    """A soft loss of the user's own is one number for a batch."""
    if task.soft_loss is soft_cross_entropy:
        return
    remedy = "a function of (outputs, teacher_outputs, temperature) that gives a batch's mean, a tensor of one number"
    with _tried("soft_loss", task.soft_loss, f" on outputs {form(outputs)} twice and a temperature of 1.0", remedy):
        value: Any = task.soft_loss(outputs, map_tensors(Tensor.detach, outputs), 1.0)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UnsupportedModel(
            f"soft_loss={called(task.soft_loss)} gives {form(value)}, not one number for the batch. Remedy: {remedy}"
        )


def _loss(task: Task, outputs: Any, targets: Any, mode: str = "") -> Any:
    """The loss. Raises UnsupportedModel if it fails or broadcasts."""
    remedy = _loss_remedy(outputs, targets)
    about = f" on outputs{mode}, {form(outputs)}," if mode else f" on outputs {form(outputs)}"
    with (
        warnings.catch_warnings(record=True) as caught,
        _tried("loss", task.loss, f"{about} and targets {form(targets)}", remedy),
    ):
        warnings.filterwarnings("always", _BROADCAST)
        loss = task.loss(outputs, targets)
    for warning in caught:
        unlike = isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.shape != targets.shape
        if str(warning.message).startswith(_BROADCAST) and unlike:
            raise _broadcast(task, outputs, targets, remedy)
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return loss


# torch's warning for losses of numbers.
_BROADCAST = "Using a target size"


def _broadcast(task: Task, outputs: Tensor, targets: Tensor, remedy: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"loss={called(task.loss)} broadcasts outputs {form(outputs)} against targets {form(targets)}, each sample "
        f"against every other. Remedy: {remedy}"
    )


def _broadcasts(task: Task, outputs: Tensor, targets: Tensor, loss: Tensor) -> bool:
    """True if the loss takes outputs in the shape of the targets too, and then has another value."""
    try:
        alike = task.loss(outputs.detach().reshape(targets.shape), targets)
        return not torch.allclose(alike.float(), loss.detach().float(), rtol=1e-3, atol=1e-6)
    except Exception:
        return False


def alike(outputs: Any, targets: Any) -> str | None:
    """How outputs ``(N, 1)`` and targets ``(N,)``, or the other way round, get one shape; None for any others."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return None
    if outputs.shape == (len(targets), 1, *targets.shape[1:]):
        return "targets.unsqueeze(1) in the data, or outputs.squeeze(1) in the model or loss"
    if targets.shape == (len(outputs), 1, *outputs.shape[1:]):
        return "targets.squeeze(1) in the data, or outputs.unsqueeze(1) in the model or loss"
    return None


def _loss_remedy(outputs: Any, targets: Any) -> str:
    if not isinstance(outputs, Tensor):
        return "output=, the key or position of what loss and metric read, or a loss for all of them"
    if (remedy := alike(outputs, targets)) is not None:
        return remedy
    if not isinstance(targets, Tensor):
        return ANY_LOSS
    single = outputs.dim() == 1 or outputs.shape[1:2] == (1,)
    if single and not targets.is_floating_point() and targets.shape == outputs.shape:
        return f"targets.float(), and {ONE_LOGIT}"
    if outputs.dim() > 1:
        if not targets.is_floating_point() and targets.shape == (len(outputs), 1):
            return "targets.squeeze(1)"
        if not targets.is_floating_point() and targets.shape == outputs.shape:
            return "targets.argmax(1) for class numbers where they are one-hot, or targets.float()"
        if targets.is_floating_point() and targets.shape == (len(outputs), *outputs.shape[2:]):
            return "targets.long() and a cross entropy for class numbers; otherwise a model with one output"
    return ANY_LOSS


def _check_score(task: Task, outputs: Any, targets: Any, samples: int) -> None:
    """The metric is one finite number a sample, or one in all where it accumulates."""
    title = f"score={called(task.score)}"
    about = f" on outputs {form(outputs)} and targets {form(targets)}"
    remedy = alike(outputs, targets) or ("a metric for these" if task.accumulates else SCORE)
    if task.accumulates:
        # Of two samples a metric may be undefined, and warn of it.
        with warnings.catch_warnings(), _tried("score", task.score, about, remedy):
            warnings.simplefilter("ignore", UserWarning)
            metric = copy.deepcopy(task.score)
            metric.reset()
            metric.update(outputs, targets)
            value = metric.compute()
        _number(f"{title}: its compute() gives", value, ONE_NUMBER)
        return
    with _tried("score", task.score, about, remedy):
        scores: Any = task.score(outputs, targets)
    if not isinstance(scores, Tensor) or scores.shape != (samples,):
        raise UnsupportedModel(
            f"{title} gives {form(scores)}, not a tensor of one number a sample, {(samples,)}. Remedy: "
            f"{_score_remedy(scores, outputs, targets)}"
        )
    _check_finite(f"{title} has a mean of", scores.float().mean(), "a finite number for every sample")


def _score_remedy(scores: Any, outputs: Any, targets: Any) -> str:
    if isinstance(scores, Tensor) and scores.dim() > 1:
        return alike(outputs, targets) or "its mean over all axes but the first, .flatten(1).mean(1)"
    if isinstance(scores, float) or (isinstance(scores, Tensor) and not scores.dim()):
        return "no mean over the samples; or evaluate=fn(model) for a number of all samples"
    if type(scores).__module__ == "numpy":
        return "torch.as_tensor of it"
    return SCORE


@contextmanager
def _tried(kind: str, function: object, about: str, remedy: str) -> Iterator[None]:
    """Turn exceptions in the block into UnsupportedModel. kind: the task's field, such as ``loss``."""
    try:
        yield
    except (PfrayError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:
        raise UnsupportedModel(f"{failed_call(kind, function, about, error)}. Remedy: {remedy}") from error


def _number(what: str, value: Any, remedy: str) -> float:
    try:
        if isinstance(value, str | bytes | bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedModel(f"{what} {form(value)}, not one number. Remedy: {remedy}") from error


def _check_finite(what: str, value: Any, remedy: str) -> None:
    number = _number(what, value, remedy)
    if not math.isfinite(number):
        raise UnsupportedModel(f"{what} {number:g}, not a finite number. Remedy: {remedy}")
