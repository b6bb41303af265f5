"""Several learners, one after the other, under one target: ``learner: [channel_pruned, litert_quant]``.

All their knobs are searched together, and a trial compresses with each of them in turn. What is chosen is done with
care: each learner's own ``finish`` and training, on what the learners before it have made of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from pfray.learner.pipeline_space import joint_space
from pfray.measure.cost import count_params
from pfray.space import CompressionSpace, Plan
from pfray.task import Task
from pfray.training.batch_norm import reestimate_batch_norm
from pfray.training.settings import Training
from pfray.utils.settings import as_written

# Training images for the batch norms of what one learner leaves to the next in a trial.
BN_IMAGES = 250


@dataclass(frozen=True)
class Step:
    """One learner of a pipeline. finetune: what its training has other than the experiment's ``finetune``."""

    name: str
    algorithm: type[Algorithm]
    settings: Any
    finetune: Mapping[str, Any]

    def bind(self, model: nn.Module, task: Task) -> Algorithm:
        return self.algorithm(model, task, self.settings)


def _steps(value: Any) -> tuple[Step, ...]:
    """Raises ConfigError with a line for every mistake, ValueError for what is no list."""
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
        as_written(Training, {**Training().model_dump(), **finetune})
    except (ValidationError, TypeError) as error:
        lines = (
            describe_errors(error, f"{path}.finetune", lambda _: list(Training.model_fields))
            if isinstance(error, ValidationError)
            else [f"{path}.finetune: {shown(finetune)} is no mapping of settings. Example: finetune: {{epochs: 1}}"]
        )
        raise ConfigError("\n".join(lines)) from error
    parsed = parse_settings(path, algorithm.settings_type, settings, ["name", "finetune"])
    return Step(component.name.rpartition(":")[2], algorithm, parsed, finetune)


@dataclass(frozen=True)
class Settings:
    """steps: the learners in order. Each entry is a name, or a mapping with its name and settings, and in ``finetune``
    what its training has other than the experiment's."""

    steps: Annotated[tuple[Any, ...], BeforeValidator(_steps)]


class Pipeline(Algorithm):
    settings: Settings
    settings_type = Settings
    # Of its algorithms some have.
    has_error_curves = True

    def space(self) -> CompressionSpace:
        """The joint space of all learners (``pipeline_space.py``). Raises ConfigError where two change one cost."""
        spaces = {step.name: step.bind(self.model, self.task).space() for step in self.settings.steps}
        return joint_space(spaces, count_params(self.model)[0])

    @cached_property
    def first(self) -> Algorithm:
        """The first algorithm, bound once. The others see another model with every plan."""
        return self.settings.steps[0].bind(self.model, self.task)

    def error_curves(self) -> dict[str, np.ndarray]:
        """Curves of each algorithm by itself, on the uncompressed model."""
        return {
            f"{step.name}:{name}": curve
            for step in self.settings.steps
            for name, curve in step.bind(self.model, self.task).error_curves().items()
        }

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """One algorithm after the other, each on what the one before has left; the last one's hook."""
        (_, own), *rest = parts(self.settings, plan)
        result = self.first.compress(own, steps)
        for step, own in rest:
            # An algorithm may fold batch norms into the weights, and then they cannot be put right any more.
            reestimate_batch_norm(result.model, self.task, BN_IMAGES, "float32")
            result = step.bind(result.model, self.task).compress(own, steps)
        return result

    def rebuild(self, structure: Plan) -> nn.Module:
        """A model of the structure that all algorithms together give a plan."""
        model = self.model
        for step, own in parts(self.settings, structure):
            algorithm = step.bind(model, self.task)
            model = algorithm.rebuild(algorithm.structure(own))
        return model


def parts(settings: Settings, plan: Plan) -> list[tuple[Step, Plan]]:
    """Learners of a pipeline, in order, each with its own part of the plan."""
    return [
        (step, {name.removeprefix(f"{step.name}:"): v for name, v in plan.items() if name.startswith(f"{step.name}:")})
        for step in settings.steps
    ]
