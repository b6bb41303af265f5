"""Several learners in sequence under one target: ``learner: [channel_pruned, litert_quant]``.

All their knobs are searched jointly, and a trial applies each ``compress`` in turn. The chosen plan goes through each
learner's own ``finish`` and training, starting from the output of the previous learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, ValidationError
from torch import nn

from pfray.config.component import Component
from pfray.config.messages import describe_errors
from pfray.config.registry import find_class, parse_settings
from pfray.errors import ConfigError, shown
from pfray.learner.base import Algorithm, Compressed
from pfray.learner.context import with_values
from pfray.learner.pipeline_space import PipelineSpace, joint_space
from pfray.measure.cost import count_params
from pfray.space import CompressionSpace, Plan
from pfray.task import Task
from pfray.training.batch_norm import reestimate_batch_norm
from pfray.training.settings import Finetune, Training
from pfray.utils.settings import as_written

# Training images on which batch norms are re-estimated between two learners of a trial.
BN_IMAGES = 250


@dataclass(frozen=True)
class Step:
    """One learner of a pipeline. finetune: settings that override the experiment's ``finetune`` in its training."""

    name: str
    algorithm: type[Algorithm]
    settings: Any
    finetune: Mapping[str, Any]

    def bind(self, model: nn.Module, task: Task) -> Algorithm:
        return self.algorithm(model, task, self.settings)


def _steps(value: Any) -> tuple[Step, ...]:
    """Parsed entries. Raises ConfigError with a line for every mistake, ValueError if ``value`` is not a list."""
    if isinstance(value, tuple) and all(isinstance(step, Step) for step in value):
        return value
    if not isinstance(value, list) or len(value) < 2:
        raise ValueError(
            "a pipeline is a list of two learners or more. Remedy: learner: [channel_pruned, litert_quant]"
        )
    steps, mistakes = [], []
    for index, entry in enumerate(value):
        try:
            steps.append(_step(entry, f"learner.{index}"))
        except ConfigError as error:
            mistakes += str(error).splitlines()
    names = [step.name for step in steps]
    mistakes += [f"learner: {name} is named twice. Remedy: once" for name in sorted({*names}) if names.count(name) > 1]
    mistakes += [
        f"learner: {step.name} cannot come before another learner, which would undo what it did. Remedy: put it "
        "last, behind a learner that takes channels or layers away, such as channel_pruned"
        for step in steps[: len(value) - 1]
        if not step.algorithm.permanent
    ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return tuple(steps)


def _step(entry: Any, path: str) -> Step:
    try:
        component = Component.model_validate(entry)
    except ValidationError as error:
        raise ConfigError("\n".join(describe_errors(error, path, lambda _: ["name"]))) from error
    algorithm: type[Algorithm] = find_class("learner", component.name, Algorithm)
    settings = dict(component.settings)
    finetune = settings.pop("finetune", {})
    try:
        as_written(Finetune, {**Finetune().model_dump(), **finetune})
    except (ValidationError, TypeError) as error:
        lines = (
            describe_errors(error, f"{path}.finetune", lambda _: list(Finetune.model_fields))
            if isinstance(error, ValidationError)
            else [f"{path}.finetune: {shown(finetune)} is no mapping of settings. Example: finetune: {{epochs: 1}}"]
        )
        raise ConfigError("\n".join(lines)) from error
    parsed = parse_settings(path, algorithm.settings_type, settings, ["name", "finetune"])
    return Step(component.name.rpartition(":")[2], algorithm, parsed, finetune)


@dataclass(frozen=True)
class Settings:
    """steps: the learners in order. Each entry is a name, or a mapping with name, settings and ``finetune``, which
    overrides the experiment's for this learner."""

    steps: Annotated[tuple[Any, ...], BeforeValidator(_steps)]


class Pipeline(Algorithm):
    settings: Settings
    settings_type = Settings
    # Some of its algorithms have them.
    has_error_curves = True

    def space(self) -> CompressionSpace:
        """Joint space of all learners (``pipeline_space.py``).

        Raises ConfigError if two change the same cost and have no joint space of their own (``space_behind``).
        """
        spaces: dict[str, CompressionSpace] = {}
        pairs: dict[str, PipelineSpace] = {}
        for step, algorithm, before in zip(self.settings.steps, self.whole, [None, *self.whole[:-1]], strict=True):
            spaces[step.name] = algorithm.space()
            if before is not None and (pair := algorithm.space_behind(before)) is not None:
                pairs[step.name] = pair
        return joint_space(spaces, count_params(self.model)[0], pairs)

    @cached_property
    def whole(self) -> list[Algorithm]:
        """The algorithms, bound once to the uncompressed model. All but the first get another model with every plan."""
        return [step.bind(self.model, self.task) for step in self.settings.steps]

    def notes(self) -> list[str]:
        # The others get a smaller model.
        return self.whole[0].notes()

    def error_curves(self) -> dict[str, np.ndarray]:
        """Error curves of each algorithm separately, on the uncompressed model."""
        return {
            f"{step.name}:{name}": curve
            for step, algorithm in zip(self.settings.steps, self.whole, strict=True)
            for name, curve in algorithm.error_curves().items()
        }

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """Applies the algorithms in sequence; the hook is the last one's."""
        plans = [own for _, own in split_plan(self.settings, plan)]
        first, *others = self.whole
        result, before = first.compress(plans[0], steps), (first, plans[0])
        for algorithm, own in zip(others, plans[1:], strict=True):
            # Before the next algorithm, because it may fold batch norms into the weights, which fixes their statistics.
            reestimate_batch_norm(result.model, self.task, BN_IMAGES, "float32")
            result, before = algorithm.behind(*before, result.model).compress(own, steps), (algorithm, own)
        return result

    def rebuild(self, structure: Plan) -> nn.Module:
        """A model with the structure that all algorithms together give a plan."""
        model, before = self.model, None
        for algorithm, (_, own) in zip(self.whole, split_plan(self.settings, structure), strict=True):
            bound = algorithm.behind(*before, model) if before else algorithm
            model, before = bound.rebuild(bound.structure(own)), (algorithm, own)
        return model


def settings_for(
    algorithm: type[Algorithm], settings: Any, training: Training, task: Task
) -> tuple[Any, list[str]]:
    """An algorithm's settings as ``Algorithm.for_training`` decides them, and the sentences for the user.

    training: the experiment's ``finetune``. After an algorithm of a pipeline the trainings of the later ones follow
    too.
    """
    if not issubclass(algorithm, Pipeline):
        per_epoch = task.train.steps(training.batch_size)
        decided, why = algorithm.for_training(settings, training.epochs * per_epoch, per_epoch)
        return decided, [why] if why else []
    steps: list[Step] = []
    notes: list[str] = []
    after = 0
    for step in reversed(settings.steps):
        own = with_values(training, step.finetune)
        per_epoch = task.train.steps(own.batch_size)
        after += own.epochs * per_epoch
        decided, why = step.algorithm.for_training(step.settings, after, per_epoch)
        steps.insert(0, replace(step, settings=decided))
        notes[:0] = [why] if why else []
    return Settings(tuple(steps)), notes


def trainings_of(algorithm: type[Algorithm], settings: Any, training: Training) -> list[Training]:
    """Trainings of a chosen plan: the experiment's ``finetune``, or that of each algorithm of a pipeline."""
    if not issubclass(algorithm, Pipeline):
        return [training]
    return [with_values(training, step.finetune) for step in settings.steps]


def split_plan(settings: Settings, plan: Plan) -> list[tuple[Step, Plan]]:
    """Learners of a pipeline, in order, each with its part of the plan."""
    return [
        (step, {name.removeprefix(f"{step.name}:"): v for name, v in plan.items() if name.startswith(f"{step.name}:")})
        for step in settings.steps
    ]
