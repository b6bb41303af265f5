"""Experiment files as the commands load them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pfray.config import schema
from pfray.config.component import Component


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> schema.Experiment:
    """The experiment, with components that exist and settings that they accept.

    Raises ConfigError with one line for every mistake.
    """
    return schema.load(path, overrides, _component_mistakes)


def _component_mistakes(components: Mapping[str, Component]) -> list[str]:
    # Imported here, because it imports torch, which takes seconds: an unreadable file is reported before.
    from pfray.workflow import setup

    return setup.component_mistakes(components)
