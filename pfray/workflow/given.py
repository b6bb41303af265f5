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
from pfray.measure.metrics import NAMED, MeanLoss, Metric, resolve_metric
from pfray.nn.inputs import call, shapes
from pfray.nn.modes import evaluating
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
    own = plain_module(model)
    notes: list[str] = []
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
        raise ConfigError(f"model: {shown(model)} is a {type(model).__name__}, not a torch.nn.Module")
    kind = type(model).__name__
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            break
    try:
        return copy.deepcopy(model).cpu()
    except Exception as error:
        raise UnsupportedModel(
            f"the model {kind} cannot be copied ({first_line(error)}). Remedy: keep locks, open files, generators and "
            "the like out of its attributes"
        ) from error


def _task(
    model: nn.Module, splits: tuple[Samples, Samples, Samples], judged: Judging, augment: Any, notes: list[str]
) -> Task:
    sample = in_memory(splits[0])
    targets = sample.targets
    labelled = isinstance(targets, Tensor) and targets.dtype == torch.int64
    if judged.loss is None and not labelled:
        kind = str(targets.dtype).removeprefix("torch.") if isinstance(targets, Tensor) else type(targets).__name__
        raise DataError(
            f"loss: none is given, and the targets are {kind}, not class numbers (int64). Remedy: targets.long() for "
            "class numbers; otherwise loss=, such as torch.nn.functional.mse_loss"
        )
    loss, output = judged.loss or F.cross_entropy, judged.output
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
    if metric.score is NAMED["accuracy"].score and isinstance(targets, Tensor) and targets.dim() == 1:
        metric = replace(metric, score=top1)  # which has its labels checked
    return replace(
        task, num_outputs=outputs.shape[1] if wide else None, score=metric.score, metric_name=metric.metric_name,
        higher_is_better=metric.higher_is_better, is_share=metric.is_share,
        soft_loss=judged.soft_loss or soft_cross_entropy,
    )  # fmt: skip


def _metric(judged: Judging, loss: Any, labelled: bool, notes: list[str]) -> Metric:
    if judged.metric is not None:
        return resolve_metric(judged.metric, judged.higher_is_better)
    if judged.evaluate is not None:
        name = getattr(judged.evaluate, "__name__", "evaluate").strip("<>")
        return Metric(MeanLoss(loss), name, judged.higher_is_better is not False)
    if labelled and (loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)):
        return NAMED["accuracy"]
    notes.append("no metric is given: models are compared by the loss")
    return Metric(MeanLoss(loss), "loss", higher_is_better=False)


def _outputs(model: nn.Module, task: Task) -> Any:
    """The outputs for two training samples, as the task reads them. Raises UnsupportedModel if the model fails."""
    inputs = task.normalize(task.train.head(2).inputs)
    try:
        with evaluating(model):
            return task.select(call(model, inputs))
    except UnsupportedModel:
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"the model {type(model).__name__} fails on a batch of the training data, {shapes(inputs)}: "
            f"{type(error).__name__}: {first_line(error)}{place_of(error)}. Remedy: adapt=fn(batch) -> (inputs, "
            "targets), with inputs as the model takes them: a tensor, a tuple or a mapping"
        ) from error


def _key(outputs: Any) -> str | None:
    keys = outputs.keys() if isinstance(outputs, Mapping) else ()
    return next((key for key in OUTPUTS if key in keys), None)
