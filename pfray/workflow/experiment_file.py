"""Experiment files as the commands load them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pfray.config import schema
from pfray.config.component import Component
from pfray.errors import ConfigError
from pfray.storage import run_lock
from pfray.utils.url import is_url


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> schema.Experiment:
    """The experiment, with components that exist and settings that they accept.

    Raises ConfigError with one line for every mistake.
    """
    return schema.load(path, overrides, _component_mistakes)


def refuse_if_in_use(path: Path, overrides: Sequence[str] = ()) -> None:
    """Raise RunExists if another process of this machine works on the file's run: before imports that take seconds."""
    with suppress(ConfigError):  # reported, with all other mistakes, when the file is loaded
        experiment = schema.load(path, overrides)
        if not is_url(experiment.storage):  # its folder here is known later
            run_lock.check_free(Path(experiment.storage).expanduser().resolve() / experiment.name)


def _component_mistakes(components: Mapping[str, Component]) -> list[str]:
    # Imported here, because it imports torch, which takes seconds: an unreadable file is reported before.
    from pfray.workflow.components import component_mistakes

    return component_mistakes(components)
