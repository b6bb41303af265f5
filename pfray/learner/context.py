"""What a run's workers are given: what all plans share, how plans become models, and one plan resolved."""

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
    """What all plans of a run share, put into Ray's object store once.

    teacher: the uncompressed model, on the CPU. earlier: in a pipeline, what the algorithms before this one made of it.
    precision: ``auto``, ``bf16`` or ``float32``.
    """

    task: Task
    teacher: nn.Module
    seed: int = 0
    precision: str = "float32"
    earlier: nn.Module | None = None

    @property
    def model(self) -> nn.Module:
        """The model that is compressed."""
        return self.teacher if self.earlier is None else self.earlier


@dataclass(frozen=True)
class Candidate:
    """A plan, resolved: what is decided about the model, and with which settings. Below it nobody knows that settings
    were searched.

    chosen: the searched settings of the plan, by name, of which ``settings``, ``training`` and ``distill`` were made.
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
    """How plans become models: the algorithm, its settings, and the training.

    searched: names of the knobs that are settings and no part of the model, such as ``finetune.lr``.
    """

    algorithm: type[Algorithm]
    settings: Any
    training: Training
    distill: Distill = field(default_factory=Distill)
    searched: tuple[str, ...] = ()

    def candidate(self, plan: Plan) -> Candidate:
        """The plan, resolved. Raises pydantic's ValidationError for a searched setting that is not allowed."""
        chosen: dict[str, dict[str, float]] = {"finetune": {}, "distill": {}, "learner": {}}
        for name in self.searched:
            section, _, key = name.partition(".")
            chosen[section][key] = plan[name]
        return Candidate(
            self.algorithm,
            updated(self.settings, chosen["learner"]),
            {name: value for name, value in plan.items() if name not in self.searched},
            updated(self.training, chosen["finetune"]),
            updated(self.distill, chosen["distill"]),
            {name: plan[name] for name in self.searched},
        )


def updated(settings: Any, chosen: Mapping[str, float]) -> Any:
    """A copy of validated settings with ``chosen`` values, validated again (a whole float becomes an int or bool).

    Raises pydantic's ValidationError for a value that is not allowed.
    """
    if not chosen:
        return settings
    return TypeAdapter(type(settings)).validate_python({**vars(settings), **chosen})
