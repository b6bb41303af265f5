"""Limits, objective and searched settings of an experiment, and checks that searcher and learner suit them."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import nn

from pfray.config.schema import Experiment
from pfray.config.search_space import as_knob
from pfray.config.sections import Target
from pfray.data._split import SAMPLED, in_memory
from pfray.errors import ConfigError, nearest
from pfray.learner.base import Algorithm
from pfray.learner.context import with_values
from pfray.measure import interpreter
from pfray.measure.cost import FLOAT_BITS, count_params, stored_bytes
from pfray.measure.interpreter import BenchError
from pfray.nn.flat import has_list
from pfray.nn.inputs import count, shapes, take, tensors
from pfray.objective import NEEDS_LATENCY, WEIGH_COST, Objective
from pfray.search.allocate import Allocate
from pfray.search.base import PlanSearcher
from pfray.space import CompressionSpace, Knob, keeps_limits
from pfray.task import Task
from pfray.units import UNITS, Amount, number_text
from pfray.workflow.latency_model import PredictedCosts

# Trials train for a number of steps, without an average and without rungs, and batches that return in later epochs do
# not matter. The batch size has to suit the workers.
NOT_SEARCHED = (
    "finetune.epochs", "finetune.batch_size", "finetune.average", "finetune.rungs", "finetune.schedule",
    "distill.cached_views",
)  # fmt: skip


def resolve_limits(
    target: Target, space: CompressionSpace, model: nn.Module, learner: str, macs: float | None = None
) -> dict[str, float]:
    """Limits by unit, as absolute numbers.

    macs: of the model; None if the space's full end has as many. Raises ConfigError for a unit that the learner cannot
    change, for a learner of a pipeline that no limit asks to compress, and for a target that the model already meets;
    InfeasibleTarget for a limit that no plan reaches.
    """
    whole = costs_as_it_is(space, model, macs)
    limits = {}
    for unit, amount in target.costs().items():
        if unit not in whole:
            remedy = "a target of these, or another learner" if whole else "another learner"
            raise ConfigError(
                f"target.{unit}: {learner} cannot change it. Allowed: {', '.join(whole) or 'none'}. Remedy: {remedy}"
            )
        limits[unit] = amount.absolute(whole[unit])
    written = {unit: _written(amount, limits[unit]) for unit, amount in target.costs().items()}
    separate = space.separate(limits)
    for part in space.parts:
        if separate and not any(part is asked for asked, _ in separate):
            learners = " and ".join(dict.fromkeys(name.partition(":")[0] for name in part.names))
            raise ConfigError(f"target: nothing asks {learners} to compress. Remedy: add one of "
                              f"{', '.join(part.costs_at(np.ones(len(part))))}")  # fmt: skip
    if keeps_limits(whole, limits):
        unit, *_ = limits
        low, high = map(number_text, space.reachable(unit))
        raise ConfigError(
            f"target.{unit}: {written[unit]} is met by the model as it is. Allowed: {low} to {high}. "
            "Remedy: choose a value that asks for compression"
        )
    space.refuse_out_of_reach(limits, written)
    return limits


def _written(amount: Amount, limit: float) -> str:
    """A limit as the user wrote it, and the number that it stands for: ``'0.4x' (210)``."""
    return f"'{amount}' ({number_text(limit)})" if amount.text else number_text(limit)


def costs_as_it_is(space: CompressionSpace, model: nn.Module, macs: float | None = None) -> dict[str, float]:
    """Costs of the uncompressed model, in the units of the space. macs: of the model; None for the space's full end."""
    offered = space.costs({knob.name: knob.full for knob in space.knobs})
    params = count_params(model)[0]
    # At the full end of a knob weights may have 8 bits, and a network another shape; the teacher's are known.
    known: dict[str, float] = {"params": params, "bits": FLOAT_BITS, "size_bytes": stored_bytes(params)}
    if macs is not None:
        known["macs"] = macs
    if isinstance(space.costs_of, PredictedCosts):
        known["latency_ms"] = space.costs_of.teacher_ms
    return {unit: known.get(unit, cost) for unit, cost in offered.items()}


def check_fits_task(experiment: Experiment, task: Task) -> None:
    """Raise ConfigError for settings that make no sense with the task's loss, metric or data."""
    searched = "distill.weight" in experiment.search.space
    if (experiment.distill.weight or searched) and not task.has_soft_labels:
        raise ConfigError(
            f"distill.weight: the task {task.name} has a loss of its own and no soft_loss, so a distance from the "
            "teacher's outputs is not defined. Remedy: give a soft_loss, or distill.weight=0"
        )
    drop = experiment.target.max_drop
    if drop is not None and drop >= 1 and task.is_share:
        raise ConfigError(
            f"target.max_drop: {drop:g} is not allowed, since {task.metric_name} is a share: 0 to below 1, such as 1%"
        )
    if experiment.export.tflite:
        _check_one_shape(task, experiment.export.images)


def _check_one_shape(task: Task, images: int | None) -> None:
    """Raise ConfigError if the ``.tflite`` could not run the test samples that it is checked on.

    A ``.tflite`` has fixed shapes: those of the first training sample, which it is converted for. Inputs in tensors
    differ from it only where the batches of a stream are padded, so one batch is looked at; the samples of a list have
    a shape each, so all are. images: test samples that the file is checked on (None: all).
    """
    example = task.train.head(1).inputs
    wanted = [tensor.shape for tensor in tensors(example)]
    test = task.test if has_list(example) else in_memory(task.test)
    samples = (
        take(inputs, slice(index, index + 1)) for inputs, _ in test.batches(SAMPLED) for index in range(count(inputs))
    )
    for sample in islice(samples, images):
        if [tensor.shape for tensor in tensors(sample)] != wanted:
            raise ConfigError(
                f"export.tflite: a .tflite takes inputs of one shape. The first training sample is {shapes(example)}, "
                f"and among the test data is {shapes(sample)}. Remedy: samples of one shape, batches padded to one "
                "length, or export.tflite=false"
            )


def resolve_objective(experiment: Experiment, task: Task) -> Objective:
    """The objective that scores trials.

    Raises ConfigError if the task does not define the agreement, or if the latency cannot be measured here.
    """
    search = experiment.search
    # Who brings an evaluation of their own wants it to be what counts.
    agrees = task.has_soft_labels and task.evaluate is None
    name = search.objective or ("agreement" if agrees else "accuracy")
    if name == "agreement" and not task.has_soft_labels:
        raise ConfigError(
            f"search.objective: the task {task.name} has a loss of its own and no soft_loss, so agreement with the "
            "teacher is not defined. Remedy: give the Task a soft_loss, or search.objective=accuracy"
        )
    if name in WEIGH_COST and not (task.higher_is_better and task.is_share):
        raise ConfigError(
            f"search.objective: {name} weighs costs against a share of right answers, and {task.metric_name} is none. "
            "Remedy: search.objective=accuracy (the metric, whichever it is), or agreement"
        )
    if name in NEEDS_LATENCY and search.latency == "litert":
        _check_litert()
    unit = next(iter(experiment.target.costs()))
    return Objective(name, UNITS[unit].field, search.thresholds)


def _check_litert() -> None:
    reason = "" if importlib.util.find_spec("litert_torch") else "there is no package litert_torch"
    try:
        interpreter.runtime()
    except BenchError as error:
        reason = str(error).partition(". Remedy")[0]
    if reason:
        raise ConfigError(
            f"search.latency: litert cannot be timed here: {reason}. Remedy: search.latency=torch, or "
            "pip install litert-torch ai-edge-litert"
        )


def searched_settings(
    experiment: Experiment, learner_settings: Any, space_of: Callable[[Any], CompressionSpace], finetune_steps: int
) -> tuple[Knob, ...]:
    """Knobs of ``search.space``. Raises ConfigError with one line for every setting that cannot be searched.

    space_of(learner's settings): the space under them; a setting that changes the space cannot be searched.
    finetune_steps: of a round of a trial.
    """
    sections = {"finetune": experiment.finetune, "distill": experiment.distill, "learner": learner_settings}
    known = [f"{section}.{key}" for section, settings in sections.items() for key in vars(settings)]
    known = [path for path in known if path not in NOT_SEARCHED]
    knobs, mistakes = [], []
    for name, text in experiment.search.space.items():
        section, _, key = name.partition(".")
        if name not in known:
            mistakes.append(f"search.space: '{name}' cannot be searched.{nearest(name, known)} "
                            f"Allowed: {', '.join(known)}")  # fmt: skip
            continue
        value = getattr(sections[section], key)
        knob = as_knob(name, text, float(value) if isinstance(value, int | float) else None)
        try:
            ends = [with_values(sections[section], {key: end}) for end in _examples(knob)]
        except ValidationError as error:
            mistakes.append(f"search.space: {name}: {text} holds values that are not allowed: "
                            f"{error.errors()[0]['msg'].lower()}. Remedy: another range")  # fmt: skip
            continue
        if section != "learner" and not finetune_steps:
            mistakes.append(f"search.space: {name} changes nothing in trials without fine-tuning. "
                            "Remedy: search.finetune_steps=30")  # fmt: skip
        if section == "learner" and _shapes_space(space_of, (learner_settings, *ends)):
            mistakes.append(f"search.space: {name} shapes the search space itself. Remedy: set it in the file")
        knobs.append(knob)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return tuple(knobs)


def _examples(knob: Knob) -> list[float]:
    """Both ends of a range and, unless it holds whole numbers only, a fraction inside."""
    inside = [] if knob.integer else [knob.compressed + (knob.full - knob.compressed) / math.pi]
    return [knob.compressed, knob.full, *inside]


def check_searcher(experiment: Experiment, searcher: type[PlanSearcher], learner: type[Algorithm]) -> None:
    """Raise ConfigError if the searcher needs error curves and the learner gives none."""
    if searcher is Allocate and not learner.has_error_curves:
        raise ConfigError(
            f"search: allocate needs error curves, which {experiment.learner.title} does not give. "
            "Remedy: search=uniform, or a searcher that measures its plans"
        )


def check_from_scratch(
    experiment: Experiment,
    searcher: type[PlanSearcher],
    learner: type[Algorithm],
    knobs: int,
    objective: str,
    finetune_steps: int,
) -> None:
    """Raise ConfigError if models that start with random weights would be scored untrained, or cannot be timed.

    knobs: number of the space's knobs. objective: its name. finetune_steps: of a round of a trial.
    """
    if not learner.from_scratch:
        return
    search, mistakes = experiment.search, []
    title = experiment.learner.title
    if not knobs and searcher.open_ended and not search.space:
        mistakes.append(f"search.name: {title} has nothing to decide for {search.name} here. Remedy: search=uniform")
    # With a single knob the target alone determines the plan.
    choice = knobs > 1 or (knobs and objective in WEIGH_COST)
    if choice and searcher.open_ended and search.trials > 1 and not finetune_steps:
        mistakes.append(f"search.finetune_steps: 0 is not allowed: the models of {title} start untrained, and all are "
                        "worth as little. Remedy: search.finetune_steps=60 or more")  # fmt: skip
    if not experiment.finetune.epochs:
        mistakes.append(f"finetune.epochs: 0 is not allowed: the model of {title} starts untrained. "
                        "Remedy: finetune.epochs=10")  # fmt: skip
    latency = experiment.target.latency_ms
    if latency is not None and latency.relative:
        mistakes.append(f"target.latency_ms: '{latency}' is not allowed with {title}, whose times "
                        "are not those of the teacher's shape. Remedy: milliseconds, such as 1.5")  # fmt: skip
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _shapes_space(space_of: Callable[[Any], CompressionSpace], settings: Sequence[Any]) -> bool:
    first, *others = [space_of(one).knobs for one in settings]
    return any(other != first for other in others)
