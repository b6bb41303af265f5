"""A smaller student network, trained from scratch with the teacher's soft labels (Hinton et al. 2015): the baseline of
Pahwa et al. 2019, "Data-driven compression", whose student is a VGG-like network of 7 layers.

The one knob is the student's width multiplier, which can meet any target. The teacher contributes only soft labels, if
``distill`` asks for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from pfray.config.registry import find_function
from pfray.errors import ConfigError
from pfray.learner.base import Algorithm, Compressed
from pfray.measure.cost import count_params, layer_macs, stored_bytes, total_macs
from pfray.nn.build import build, task_arguments
from pfray.nn.modes import place, settle_memory_format
from pfray.nn.no_module import no_module
from pfray.nn.output_checks import check_output
from pfray.space import CompressionSpace, Knob, Plan
from pfray.task import example_input

WIDTH = "width"
# Widths are multiples of this: 8 of 512 channels.
STEP = 1 / 64


def _check_model(name: str) -> str:
    try:
        find_function("model", name)
    except ConfigError as error:
        raise ValueError(str(error).removeprefix("model: ")) from error
    return name


@dataclass(frozen=True)
class Settings:
    """student: the model's name, or an import path, as in the section ``model``. width: its largest width multiplier. A
    student without one, such as resnet20, has a single size, which meets a target or not."""

    student: Annotated[str, AfterValidator(_check_model)] = "vgg7"
    width: Annotated[float, Field(ge=2 * STEP, le=4)] = 1.0

    @property
    def has_width(self) -> bool:
        return WIDTH in inspect.signature(find_function("model", self.student)).parameters


class Distilled(Algorithm):
    settings: Settings
    settings_type = Settings
    from_scratch = True

    def space(self) -> CompressionSpace:
        """One knob, the student's width; costs ``macs``, ``params``, and ``size_bytes`` of float32.

        Raises ConfigError if the student cannot be built, UnsupportedModel if it cannot run on the data.
        """
        settings, task_args, example = self.settings, task_arguments(self.task), example_input(self.task)
        with torch.random.fork_rng(devices=[]):
            largest = build_student(settings, {WIDTH: settings.width}, task_args)
        layer_macs(largest, example)
        check_output(largest, self.task)
        if not settings.has_width:
            return CompressionSpace((), _Costs(settings, task_args, example))
        widths = (*np.arange(STEP, settings.width, STEP).tolist(), settings.width)
        facts = {"params": float(count_params(largest)[0])}
        knob = Knob(WIDTH, widths[0], settings.width, choices=widths, facts=facts, kind="width")
        return CompressionSpace((knob,), _Costs(settings, task_args, example))

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """The student of the plan's width, with weights drawn from torch's generator."""
        student = build_student(self.settings, plan, task_arguments(self.task))
        settle_memory_format(student, example_input(self.task))
        return Compressed(place(student, self.device))


def build_student(settings: Settings, plan: Plan, task_args: Mapping[str, int]) -> nn.Module:
    """The student of the plan's width, with weights drawn from torch's generator.

    task_args: arguments that the task determines. Raises ConfigError if the student's function returns no module.
    """
    own = {WIDTH: plan[WIDTH]} if settings.has_width else {}
    made: Any = build("learner.student", find_function("model", settings.student), task_args, own)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"learner.student: '{settings.student}' returned {no_module(made)}")
    return made


class _Costs:
    """``costs_of`` of the space: costs of the student of a width, counted on a built one and cached."""

    def __init__(self, settings: Settings, task_args: Mapping[str, int], example: Tensor) -> None:
        self.settings, self.task_args, self.example = settings, task_args, example
        self._of = lru_cache(maxsize=None)(self._count)

    def __call__(self, values: np.ndarray) -> dict[str, float]:
        return dict(self._of(float(values[0]) if len(values) else self.settings.width))

    def _count(self, width: float) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            model = build_student(self.settings, {WIDTH: width}, self.task_args)
        params = float(count_params(model)[0])
        return {"macs": float(total_macs(model, self.example)), "params": params, "size_bytes": stored_bytes(params)}

    def __reduce__(self) -> tuple[Any, ...]:
        return _Costs, (self.settings, self.task_args, self.example)
