"""Experiment files: YAML, fragments and ``key=value`` overrides become one frozen, validated ``Experiment``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from pfray.config import merge, strict_yaml
from pfray.config.component import PIPELINE, Component, LearnerChoice, Model
from pfray.config.messages import describe_errors
from pfray.config.sections import Export, Resources, Search, Target, Teacher
from pfray.errors import ConfigError, short
from pfray.training.settings import Distill, Distributed, Finetune
from pfray.utils.settings import Section, as_written
from pfray.utils.url import check_storage

ComponentCheck = Callable[[Mapping[str, Component]], list[str]]


class Experiment(Section):
    """One whole experiment. ``load`` reports all mistakes of its file at once."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: Model
    data: Component
    learner: LearnerChoice
    target: Target
    search: Search = Search()
    teacher: Teacher = Teacher()
    finetune: Finetune = Finetune()
    distill: Distill = Distill()
    export: Export = Export()
    resources: Resources = Resources()
    distributed: Distributed = Distributed()
    seed: int = Field(0, ge=0, lt=2**31)
    storage: Annotated[str, AfterValidator(check_storage)] = "runs"

    @model_validator(mode="after")
    def _latency_needs_a_file(self) -> Experiment:
        if self.target.latency_ms is not None and not self.export.tflite:
            raise ValueError("target.latency_ms is the .tflite's, and export.tflite is false. "
                             "Remedy: target.macs=0.5x, or export.tflite=true")
        return self

    @model_validator(mode="after")
    def _batches_can_be_shared(self) -> Experiment:
        workers = self.resources.workers
        for section, size in (("teacher", self.teacher.batch_size), ("finetune", self.finetune.batch_size)):
            if workers > 1 and (size % workers or size < 2 * workers):
                raise ValueError(f"{section}.batch_size is {size}, which {workers} workers cannot share. Remedy: a "
                                 f"multiple of resources.workers, {2 * workers} or more")
        if workers == 1 and self.distributed.comm_hook != "none":
            raise ValueError(f"distributed.comm_hook is {self.distributed.comm_hook}, but one worker has nobody to "
                             "send gradients to. Remedy: resources.workers=2 or more, or distributed.comm_hook=none")
        return self


def load(path: Path, overrides: Sequence[str] = (), check: ComponentCheck | None = None) -> Experiment:
    """Read, merge and validate. ``overrides`` are texts such as ``search.trials=60``, later ones winning.

    check(components by section): further mistakes in the well-formed sections.

    Raises ConfigError whose message has one line for every mistake.
    """
    raw = merge.read_with_includes(path)
    mistakes: list[str] = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            mistakes.append(f"override '{short(override)}': not of the form key=value. Example: search.trials=60")
            continue
        try:
            merge.set_key(raw, key.split("."), strict_yaml.parse(text))
        except ValueError as error:
            mistakes.append(f"override '{short(override)}': {error}. Example: search.trials=60")
    raw.setdefault("name", path.stem)
    return validated(raw, check, mistakes)


def validated(raw: Mapping[str, Any], check: ComponentCheck | None = None, found: Sequence[str] = ()) -> Experiment:
    """The experiment of plain data. found: mistakes that are known already. check: as of ``load``.

    Raises ConfigError whose message has one line for every mistake.
    """
    mistakes = list(found)
    try:
        experiment = as_written(Experiment, raw)
    except ValidationError as error:
        mistakes += describe_errors(error, "", _allowed_at, elsewhere)
    if check is not None:
        mistakes += check(_well_formed(raw))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return experiment


def _well_formed(raw: Mapping[str, Any]) -> dict[str, Component]:
    components: dict[str, Component] = {}
    for key, section in (("model", Model), ("data", Component), ("learner", LearnerChoice), ("search", Search)):
        with suppress(ValidationError):
            if key in raw or key == "search":
                components[key] = as_written(section, raw.get(key, {}))
    return components


def plain(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment as the plain data of its file."""
    plain = experiment.model_dump(mode="json")
    for key, value in plain.items():
        if isinstance(getattr(experiment, key), Component):
            settings = value.pop("settings")
            plain[key] = settings["steps"] if value["name"] == PIPELINE else {**value, **settings}
    return plain


def dump(experiment: Experiment) -> str:
    """The resolved experiment as YAML, from which ``load`` gives the same experiment."""
    return strict_yaml.dump(plain(experiment))


def elsewhere(key: str) -> list[str]:
    """Paths of the sections' keys of this name, such as ``finetune.epochs``; those of the teacher last."""
    found = [f"{name}.{key}" for name in Experiment.model_fields if key in _allowed_at((name, key)) and key != "name"]
    return sorted(found, key=lambda path: path.startswith("teacher."))


def _allowed_at(location: tuple[Any, ...]) -> list[str]:
    """Keys of the section that holds ``location``."""
    section: type[BaseModel] = Experiment
    for part in location[:-1]:
        annotation = section.model_fields[part].annotation
        section = next(t for t in (annotation, *get_args(annotation)) if isinstance(t, type))
        if not issubclass(section, BaseModel):
            return []
    names = [name for name in section.model_fields if name != "settings"]
    return [*names, "include"] if section is Experiment else names
