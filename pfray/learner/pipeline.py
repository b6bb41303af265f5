"""Several learners, one after the other, under one target: ``learner: [channel_pruned, litert_quant]``.

All their knobs are searched together, and a trial compresses with each of them in turn. What is chosen is done with
care: each learner's own ``finish`` and training, on what the learners before it have made of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, ValidationError
from torch import nn

from pfray.config.component import Component
from pfray.config.messages import describe_errors
from pfray.config.registry import find_class, parse_settings
from pfray.errors import ConfigError, shown
from pfray.learner.base import Algorithm, Compressed
from pfray.measure.cost import count_params, stored_bytes
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
        """The knobs of all learners, named ``learner:knob``, and all their costs.

        ``size_bytes`` is offered where all learners offer it: what all of them together leave. Raises ConfigError where
        two learners change one and the same cost otherwise.
        """
        steps = self.settings.steps
        parts = [_named(step.name, step.bind(self.model, self.task).space()) for step in steps]
        offered = [part.costs_at(np.ones(len(part))) for part in parts]
        for unit in [unit for unit in offered[0] if unit != "size_bytes"]:
            rivals = [step.name for step, costs in zip(steps, offered, strict=True) if unit in costs]
            if len(rivals) > 1:
                raise ConfigError(f"learner: {' and '.join(rivals)} both change {unit}. Remedy: keep one of them")
        sizes = None
        if all("size_bytes" in costs for costs in offered):
            quantized = (part for part, costs in zip(parts, offered, strict=True) if "bits" in costs)
            sizes = next(
                ({knob.name.partition(":")[2]: knob.facts["params"] for knob in part.knobs} for part in quantized), None
            )
        costs_of = partial(_costs, parts=parts, params=count_params(self.model)[0], sizes=sizes)
        return CompressionSpace(tuple(knob for part in parts for knob in part.knobs), costs_of, tuple(parts))

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


def _named(prefix: str, space: CompressionSpace) -> CompressionSpace:
    return replace(space, knobs=tuple(replace(knob, name=f"{prefix}:{knob.name}") for knob in space.knobs))


def _costs(
    values: np.ndarray, parts: Sequence[CompressionSpace], params: int, sizes: Mapping[str, float] | None
) -> dict[str, float]:
    """params: of the whole model. sizes: weights of each layer that is quantized; None where bytes are not offered."""
    costs: dict[str, float] = {}
    left: dict[str, float] = {}
    bits = values[:0]
    start = 0
    for part in parts:
        own = values[start : start + len(part)]
        start += len(part)
        found = part.costs_of(own)
        costs |= found
        if part.weights_left is not None:
            left |= part.weights_left(own)
        if "bits" in found:
            bits = own
    whole = costs.pop("size_bytes", None)
    if whole is not None and sizes is not None:
        weights = np.array([left.get(name, size) for name, size in sizes.items()])
        # What describes the buckets, as if no channel were gone: no more than that is left.
        described = whole - stored_bytes(params, np.array(list(sizes.values())), bits)
        costs["size_bytes"] = stored_bytes(int(costs.get("params", params)), weights, bits) + described
    return costs
