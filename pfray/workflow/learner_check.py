"""Checks of a learner's results: its space when a run is loaded, its error curves, and for ``--check`` one plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from pfray.config.schema import Experiment
from pfray.errors import ConfigError, short
from pfray.learner.base import Algorithm, check_result
from pfray.learner.pipeline import Pipeline
from pfray.space import CompressionSpace
from pfray.utils.user_code import user_code
from pfray.workflow.setup import LoadedRun


def check_curves(curves: Mapping[str, Any], space: CompressionSpace) -> None:
    """Raise ConfigError for error curves of no knob, that are no rows of finite numbers, or that run backwards."""
    if curves and not set(curves) & set(space.names):
        raise ConfigError(
            f"learner: error_curves belong to no knob, such as '{short(str(min(curves, key=str)))}'. Remedy: the names "
            "of the knobs that space() gives"
        )
    for name, curve in curves.items():
        try:
            values = np.asarray(curve, dtype=float)
        except (TypeError, ValueError):
            values = np.zeros(0)
        what = f"learner: the error curve of '{short(str(name))}'"
        if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
            raise ConfigError(f"{what} is no row of two or more finite numbers. Remedy: an array (G,)")
        if values[0] < values[-1]:
            raise ConfigError(
                f"{what} rises from {values[0]:.3g} to {values[-1]:.3g}. Remedy: begin with the error at the knob's "
                "most compressed end, and end with that at its full end"
            )


def try_plan(experiment: Experiment, loaded: LoadedRun) -> None:
    """Compress by the uniform plan, rebuild its structure, and look at the error curves. Raises ConfigError."""
    components, title = loaded.components, experiment.learner.title
    uniform = loaded.space.uniform(loaded.limits)
    plan = {name: value for name, value in uniform.items() if name not in loaded.searched}
    with user_code(f"learner: {title}", "mend the learner"):
        torch.manual_seed(experiment.seed)
        algorithm = components.learner(loaded.model, loaded.task, components.learner_settings)
        compressed = check_result(algorithm, "compress", algorithm.compress(plan))
        _check_rebuilt(algorithm, algorithm.rebuild(algorithm.structure(plan)), compressed.model)
        check_curves(algorithm.error_curves(), loaded.space)


def _check_rebuilt(algorithm: Algorithm, rebuilt: Any, compressed: nn.Module) -> None:
    name = type(algorithm).__name__
    if not isinstance(rebuilt, nn.Module):
        raise ConfigError(f"learner: {name}.rebuild returned a {type(rebuilt).__name__}. Remedy: return a model")
    if algorithm.has_finish or isinstance(algorithm, Pipeline):
        return  # a model of finish may have another structure than one of compress
    shapes = [{n: t.shape for n, t in model.state_dict().items()} for model in (rebuilt, compressed)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"learner: {name}.rebuild and {name}.compress give models of different structure. Remedy: the same layers "
            "for the same plan"
        )
