"""Components of an experiment: the classes and functions that it names, and their settings with all defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from pfray.config.component import PIPELINE, Component
from pfray.config.registry import find_class, find_function, parse_settings
from pfray.config.schema import Experiment
from pfray.config.sections import Search
from pfray.errors import ConfigError
from pfray.learner.base import Algorithm
from pfray.search.base import PlanSearcher
from pfray.task import Task
from pfray.utils.signatures import check_arguments
from pfray.workflow.given import Given


@dataclass(frozen=True)
class Components:
    """Classes and functions that an experiment names, and their validated settings."""

    model: Callable[..., nn.Module]
    data: Callable[..., Task]
    learner: type[Algorithm]
    learner_settings: Any
    searcher: type[PlanSearcher]
    search_settings: Any


def resolve(experiment: Experiment, given: Given | None = None) -> Components:
    """The components that the experiment names, or model and data ``given`` from Python.

    Raises ConfigError with one line for every mistake.
    """
    own = {"learner": experiment.learner, "search": experiment.search}
    named = {"model": experiment.model, "data": experiment.data} if given is None else {}
    found = _found({**named, **own})
    if given is not None:
        found |= {"model": lambda: given.model, "data": lambda: given.task}
    return Components(**found)


def component_mistakes(components: Mapping[str, Component]) -> list[str]:
    """One line for every unknown name or wrong setting in the given sections."""
    return _find(components)[1]


def _found(components: Mapping[str, Component]) -> dict[str, Any]:
    """Fields of Components. Raises ConfigError with one line for every mistake."""
    found, mistakes = _find(components)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return found


def _find(components: Mapping[str, Component]) -> tuple[dict[str, Any], list[str]]:
    """(fields of Components, mistakes)."""
    found: dict[str, Any] = {}
    mistakes: list[str] = []

    def attempt(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except ConfigError as error:
            mistakes.extend(str(error).splitlines())
            return None

    for kind in ("model", "data"):
        if kind in components:
            name, settings = components[kind].name, components[kind].settings
            found[kind] = attempt(partial(find_function, kind, name))
            mistakes += [] if found[kind] is None else check_arguments(kind, found[kind], settings)
    kinds: tuple[tuple[str, str, type, list[str]], ...] = (
        ("learner", "learner", Algorithm, []),
        ("search", "searcher", PlanSearcher, [name for name in Search.model_fields if name != "settings"]),
    )
    for kind, field, base, other_keys in kinds:
        if kind in components:
            cls = found[field] = attempt(partial(find_class, kind, components[kind].name, base))
            settings = components[kind].settings
            if cls is not None:
                parse = partial(parse_settings, kind, cls.settings_type, settings, other_keys)
                found[f"{kind}_settings"] = attempt(parse)
    return found, mistakes


def with_defaults(experiment: Experiment, given: Given | None = None) -> Experiment:
    """The experiment with every setting of its learner and searcher. Raises ConfigError as ``resolve`` does."""
    components = resolve(experiment, given)
    return _filled(experiment, components.learner_settings, components.search_settings)


def with_own_defaults(experiment: Experiment) -> Experiment:
    """As ``with_defaults``, of an experiment whose model and data are not looked up: they may be from Python."""
    found = _found({"learner": experiment.learner, "search": experiment.search})
    return _filled(experiment, found["learner_settings"], found["search_settings"])


def _filled(experiment: Experiment, learner_parsed: Any, search_parsed: Any) -> Experiment:
    learner, search = experiment.learner, experiment.search
    if learner.name == PIPELINE:
        pairs = zip(learner.settings["steps"], learner_parsed.steps, strict=True)
        learner_settings: dict[str, Any] = {"steps": [_whole_step(given, step) for given, step in pairs]}
    else:
        learner_settings = _whole(learner.settings, learner_parsed)
    return experiment.model_copy(update={
        "learner": learner.model_copy(update={"settings": learner_settings}),
        "search": search.model_copy(update={"settings": _whole(search.settings, search_parsed)}),
    })  # fmt: skip


def _whole_step(given: Any, step: Any) -> dict[str, Any]:
    """Entry of a pipeline's list with all settings. step: what it was parsed to."""
    entry = Component.model_validate(given)
    finetune = {"finetune": dict(step.finetune)} if step.finetune else {}
    own = {key: value for key, value in entry.settings.items() if key != "finetune"}
    return {"name": entry.name, **_whole(own, step.settings), **finetune}


def _whole(given: Mapping[str, Any], parsed: Any) -> dict[str, Any]:
    """Plain data of parsed settings; ``given`` where a user's own type has no such form that is read back."""
    kind = type(parsed)
    try:
        plain: dict[str, Any] = TypeAdapter(kind).dump_python(parsed, mode="json")
        if parse_settings("", kind, plain) == parsed:
            return plain
    except Exception:  # a type of the user's own may raise anything
        pass
    return dict(given)
