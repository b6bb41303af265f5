"""Experiment files as the commands load them: quick mistakes are reported before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfray.config import catalog, schema


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> schema.Experiment:
    """The experiment, with components that exist and settings that they accept.

    Raises ConfigError with one line per mistake. Settings of components are checked once the rest is right, because
    that imports them, and with them torch.
    """
    experiment = schema.load(path, overrides, catalog.unknown_names)
    from pfray.workflow import setup

    setup.resolve(experiment)
    return experiment
