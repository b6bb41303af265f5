"""Components of an experiment: a name and settings each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from pfray.errors import shown
from pfray.utils.settings import Section

# Name of the learner that a list of learners becomes.
PIPELINE = "pipeline"


class Component(Section):
    """A component chosen by name, with its settings: ``digits``, or ``{name: cifar10, path: data/cifar10}``.

    For an import path the key may be ``factory`` instead of ``name``.
    """

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, Mapping):
            raise ValueError(f"{shown(value)} is not allowed: give a name, or a mapping with 'name' and settings")
        given = dict(value)
        if "factory" in given:
            if "name" in given:
                raise ValueError("both name and factory are given. Remedy: keep one of them")
            given["name"] = given.pop("factory")
        if not isinstance(given.get("settings", {}), Mapping):
            settings = shown(given["settings"])
            raise ValueError(f"settings is {settings}, not a mapping. Remedy: write them beside the name")
        own = {key: given.pop(key) for key in cls.model_fields if key in given}
        return {**own, "settings": {**own.get("settings", {}), **given}}


class LearnerChoice(Component):
    """One learner, or a list of them: a pipeline, whose learners compress one after the other."""

    @model_validator(mode="before")
    @classmethod
    def _gather_list(cls, value: Any) -> Any:
        return {"name": PIPELINE, "steps": value} if isinstance(value, list) else value

    @property
    def title(self) -> str:
        """Names of the learners."""
        if self.name != PIPELINE:
            return self.name
        return ", ".join(Component.model_validate(step).name for step in self.settings["steps"])


class Model(Component):
    """weights: a state-dict file; None trains the teacher with the settings of ``teacher``."""

    weights: str | None = None
