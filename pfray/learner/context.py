"""Inputs of a run's workers: the context shared by all plans, the recipe from plan to model, and a resolved plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from pfray.learner.base import Algorithm
from pfray.space import Plan
from pfray.task import Task
from pfray.training.settings import Distill, Training


@dataclass(frozen=True)
class Context:
    """Shared by all plans of a run, put into Ray's object store once.

    teacher: the uncompressed model, on the CPU. earlier: in a pipeline, the output of the previous algorithm.
    precision: ``auto``, ``bf16`` or ``float32``.
    """

    task: Task
    teacher: nn.Module
    seed: int = 0
    precision: str = "float32"
    earlier: nn.Module | None = None

    @property
    def model(self) -> nn.Module:
        """The model to compress."""
        return self.teacher if self.earlier is None else self.earlier


@dataclass(frozen=True)
class Candidate:
    """A resolved plan: the knobs of the model, and the settings. Code that gets one need not know which were searched.

    chosen: values of the searched settings, by name, already merged into ``settings``, ``training`` and ``distill``.
    """

    algorithm: type[Algorithm]
    settings: Any
    plan: Plan
    training: Training
    distill: Distill
    chosen: Mapping[str, float] = field(default_factory=dict)

    def bind(self, model: nn.Module, task: Task) -> Algorithm:
        """The algorithm, bound to a model."""
        return self.algorithm(model, task, self.settings)


@dataclass(frozen=True)
class Recipe:
    """From plans to models: the algorithm, its settings, and the training.

    searched: names of the knobs that are settings and not part of the model, such as ``finetune.lr``.
    """

    algorithm: type[Algorithm]
    settings: Any
    training: Training
    distill: Distill = field(default_factory=Distill)
    searched: tuple[str, ...] = ()

    def candidate(self, plan: Plan) -> Candidate:
        """The resolved plan. Raises pydantic's ValidationError for an invalid searched setting."""
        chosen: dict[str, dict[str, float]] = {"finetune": {}, "distill": {}, "learner": {}}
        for name in self.searched:
            section, _, key = name.partition(".")
            chosen[section][key] = plan[name]
        return Candidate(
            self.algorithm,
            with_values(self.settings, chosen["learner"]),
            {name: value for name, value in plan.items() if name not in self.searched},
            with_values(self.training, chosen["finetune"]),
            with_values(self.distill, chosen["distill"]),
            {name: plan[name] for name in self.searched},
        )


def with_values(settings: Any, chosen: Mapping[str, float]) -> Any:
    """A copy of validated settings with ``chosen`` values, validated again (a whole float becomes an int or bool).

    Raises pydantic's ValidationError for an invalid value.
    """
    if not chosen:
        return settings
    return TypeAdapter(type(settings)).validate_python({**vars(settings), **chosen})
