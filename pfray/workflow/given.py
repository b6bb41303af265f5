"""Model, data and functions of a user's own, from Python, as the model and task of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.data._given import held_out, split_of
from pfray.data._split import in_memory
from pfray.errors import ConfigError, DataError, UnsupportedModel, first_line, shown
from pfray.measure.metrics import NAMED, MeanLoss, Metric, directed, resolve_metric
from pfray.nn.checks import check_not_meta, check_parameters
from pfray.nn.inputs import call, form
from pfray.nn.modes import evaluating
from pfray.nn.no_module import no_module
from pfray.task import Samples, Task, soft_cross_entropy, top1
from pfray.utils.user_code import place_of

# Where the models of transformers and torchvision keep what a loss reads.
OUTPUTS = ("logits", "out")


@dataclass(frozen=True)
class Given:
    """Model and task from Python, in place of the components that an experiment file names.

    is_trained: the model is the teacher as it is. notes: remarks on how the data were understood.
    """

    model: nn.Module
    task: Task
    is_trained: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judging:
    """Loss and metric, each as of ``Task`` or ``pfray.compress``; None for what data and outputs suggest."""

    loss: Callable[[Any, Any], Tensor] | None = None
    metric: Any = None
    higher_is_better: bool | None = None
    evaluate: Callable[[nn.Module], float] | None = None
    output: str | int | Callable[[Any], Any] | None = None
    soft_loss: Callable[[Any, Any, float], Tensor] | None = None


def given_run(
    model: Any,
    train: Any,
    validation: Any,
    test: Any,
    judged: Judging,
    *,
    adapt: Callable[[Any], Any] | None = None,
    augment: Callable[[Any, torch.Generator], Any] | None = None,
    seed: int = 0,
    is_trained: bool = True,
) -> Given:
    """Model and task of objects as users have them. Arguments as of ``pfray.compress``. Raises PfrayError."""
    for name, function in (("adapt", adapt), ("augment", augment)):
        if function is not None and not callable(function):
            raise ConfigError(f"{name}: {shown(function)} cannot be called. Remedy: a function, or leave it out")
    own = plain_module(model)
    check_parameters(own)
    notes = [f"the model is taken out of its {wrapper}" for wrapper in _wrappers(model)]
    train_split = split_of("train", train, adapt, own, seed)
    if validation is None:
        count = len(train_split)
        train_split, validation_split = held_out(train_split, seed)
        notes.append(f"no validation data: {len(validation_split)} of the {count} training samples are held out for it")
    else:
        validation_split = split_of("validation", validation, adapt, own, seed)
    test_split = validation_split
    if test is None:
        notes.append("no test data: the results are those on the validation data, which the search has seen")
    else:
        test_split = split_of("test", test, adapt, own, seed)
    task = _task(own, (train_split, validation_split, test_split), judged, augment, notes)
    return Given(own, task, is_trained, tuple(notes))


def plain_module(model: Any) -> nn.Module:
    """A copy of a user's model on the CPU, out of the wrappers of compilation and data parallelism.

    Raises ConfigError for what is no module, UnsupportedModel for one that cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: {no_module(model)}")
    check_not_meta(model)
    kind = type(model).__name__
    try:
        own: nn.Module = copy.deepcopy(_unwrapped(model)).cpu()
    except Exception as error:
        raise UnsupportedModel(
            f"the model {kind} cannot be copied ({first_line(error)}). Remedy: keep locks, open files, generators and "
            "the like out of its attributes"
        ) from error
    for parent in list(own.modules()):
        for name, child in parent._modules.items():  # a module under two names too
            if child is not None:
                parent._modules[name] = _unwrapped(child)
    return own


def _inner(module: nn.Module) -> nn.Module | None:
    """What a wrapper of compilation or data parallelism holds; None for any other module."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return module.module
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def _unwrapped(module: nn.Module) -> nn.Module:
    while (inner := _inner(module)) is not None:
        module = inner
    return module


def _wrappers(model: nn.Module) -> list[str]:
    """Kinds of the wrappers around the model and the modules in it."""
    kinds = [type(module).__name__ for module in model.modules() if _inner(module) is not None]
    return ["torch.compile" if kind == "OptimizedModule" else kind for kind in dict.fromkeys(kinds)]


def _task(
    model: nn.Module, splits: tuple[Samples, Samples, Samples], judged: Judging, augment: Any, notes: list[str]
) -> Task:
    sample = in_memory(splits[0])
    targets = sample.targets
    labelled = isinstance(targets, Tensor) and targets.dtype == torch.int64
    if judged.loss is None and not labelled:
        raise DataError(
            f"loss: none is given, and the targets are {form(targets)}, not class numbers (int64). Remedy: "
            f"{_loss_remedy(targets)}"
        )
    loss, output = F.cross_entropy if judged.loss is None else judged.loss, judged.output
    # First without the number of outputs, which a look at them gives.
    task = Task(
        type(model).__name__, *splits, augment=augment, loss=loss, score=MeanLoss(loss), output=output,
        evaluate=judged.evaluate,
    )  # fmt: skip
    outputs = _outputs(model, task)
    if output is None and judged.loss is None and (key := _key(outputs)) is not None:
        task, outputs = replace(task, output=key), outputs[key]
        notes.append(f"loss and metric read '{key}' of the model's outputs")
    wide = labelled and isinstance(outputs, Tensor) and outputs.dim() > 1
    metric = _metric(judged, loss, labelled, notes)
    if metric.score is NAMED["accuracy"].score and labelled and wide and targets.dim() == 1:
        metric = replace(metric, score=top1)  # which has its labels checked
    return replace(
        task, num_outputs=outputs.shape[1] if wide else None, score=metric.score, metric_name=metric.metric_name,
        higher_is_better=metric.higher_is_better, is_share=metric.is_share,
        soft_loss=judged.soft_loss or soft_cross_entropy,
    )  # fmt: skip


def _loss_remedy(targets: Any) -> str:
    """The way out for targets that are no class numbers, without a loss."""
    if not isinstance(targets, Tensor):
        return "adapt=fn(batch) -> (inputs, targets), with class numbers; otherwise loss=fn(outputs, targets)"
    if not targets.is_floating_point() or (targets.dim() == 1 and bool((targets == targets.round()).all())):
        return "targets.long() for class numbers; otherwise loss=, such as torch.nn.functional.mse_loss"
    if targets.dim() == 2 and targets.shape[1] > 1 and bool(torch.allclose(targets.sum(1), torch.ones(len(targets)))):
        return "targets.argmax(1) where they are one-hot; loss=torch.nn.functional.cross_entropy for probabilities"
    return "loss=, such as torch.nn.functional.mse_loss"


def _metric(judged: Judging, loss: Any, labelled: bool, notes: list[str]) -> Metric:
    direction = judged.higher_is_better
    if judged.metric is not None:
        if judged.evaluate is not None:
            raise ConfigError("metric and evaluate are both given, and evaluate replaces a metric. Remedy: one of them")
        metric = resolve_metric(judged.metric, direction)
        if not isinstance(judged.metric, str) and getattr(judged.metric, "higher_is_better", None) is None:
            notes += _presumed(metric.metric_name, direction)
        return metric
    if judged.evaluate is not None:
        name = getattr(judged.evaluate, "__name__", "evaluate").strip("<>")
        notes += _presumed(name, direction)
        return directed(Metric(MeanLoss(loss), name), direction, known=False)
    if labelled and (loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)):
        return directed(NAMED["accuracy"], direction, known=True)
    notes.append("no metric is given: models are compared by the loss")
    return directed(Metric(MeanLoss(loss), "loss", higher_is_better=False), direction, known=True)


def _presumed(name: str, direction: bool | None) -> list[str]:
    """A remark on a metric whose direction nobody has said."""
    return [] if direction is not None else [f"more is taken to be better for {name}; higher_is_better=False if not"]


def _outputs(model: nn.Module, task: Task) -> Any:
    """The outputs for two training samples, as the task reads them. Raises UnsupportedModel if the model fails."""
    inputs = task.normalize(task.train.head(2).inputs)
    try:
        with evaluating(model):
            outputs = call(model, inputs)
    except Exception as error:
        remedy = (
            "adapt=fn(batch) -> (inputs, targets), with inputs as the model takes them: a tensor, a tuple or a mapping"
        )
        if isinstance(inputs, Tensor) and inputs.dim() == 4 and inputs.shape[3] in (1, 3, 4):
            remedy = "images as (N, C, H, W), which inputs.permute(0, 3, 1, 2) gives"
        raise UnsupportedModel(
            f"the model {type(model).__name__} fails on a batch of the training data, {form(inputs)}: "
            f"{type(error).__name__}: {first_line(error)}{place_of(error)}. Remedy: {remedy}"
        ) from error
    return task.select(outputs)


def _key(outputs: Any) -> str | None:
    keys = outputs.keys() if isinstance(outputs, Mapping) else ()
    return next((key for key in OUTPUTS if key in keys), None)
