"""Job: what a run's workers need, put into Ray's object store once and read by all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from pfray.config.sections import Search
from pfray.objective import Objective
from pfray.space import Plan
from pfray.task import Task
from pfray.training.settings import Distill, Training

ACCURACY = Objective("accuracy")


@dataclass(frozen=True)
class Job:
    """teacher: the uncompressed model, on the CPU. settings: the learner's own ``Settings``.

    earlier: in a pipeline, what the learners before this one made of the teacher.
    searched: the names of the knobs that are settings and no part of the model, such as ``finetune.lr``.
    """

    task: Task
    teacher: nn.Module
    settings: Any
    training: Training
    distill: Distill
    search: Search
    seed: int
    precision: str
    objective: Objective = ACCURACY
    searched: tuple[str, ...] = ()
    earlier: nn.Module | None = None
    shrink_on_oom: bool = False

    @property
    def model(self) -> nn.Module:
        """What the learner compresses."""
        return self.teacher if self.earlier is None else self.earlier

    def for_plan(self, plan: Plan) -> tuple[Job, Plan]:
        """(the job with the settings that ``plan`` chose, the rest of the plan: what is decided about the model)."""
        chosen: dict[str, dict[str, float]] = {"finetune": {}, "distill": {}, "learner": {}}
        for name in self.searched:
            section, _, key = name.partition(".")
            chosen[section][key] = plan[name]
        job = replace(
            self,
            training=updated(self.training, chosen["finetune"]),
            distill=updated(self.distill, chosen["distill"]),
            settings=updated(self.settings, chosen["learner"]),
        )
        return job, {name: value for name, value in plan.items() if name not in self.searched}


def updated(settings: Any, chosen: Mapping[str, float]) -> Any:
    """A copy of validated settings with ``chosen`` values, validated again (a whole float becomes an int or bool).

    Raises pydantic's ValidationError for a value that is not allowed.
    """
    if not chosen:
        return settings
    return TypeAdapter(type(settings)).validate_python({**vars(settings), **chosen})
