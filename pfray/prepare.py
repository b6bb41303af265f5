"""From an experiment's names and settings to objects: task, model, learner, searcher. All before Ray starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfray.components import check_arguments, find_class, find_function, parse_settings
from pfray.config import Experiment, Search, Target
from pfray.errors import ConfigError, PfrayError, UnsupportedModel, WeightsError
from pfray.learner import Learner
from pfray.measure import count_params, example_input, first_line, layer_macs
from pfray.search.base import PlanSearcher
from pfray.space import CompressionSpace, Limits, Plan
from pfray.task import Task


@dataclass(frozen=True)
class Parts:
    """The classes and functions that an experiment names, and their validated settings."""

    model: Callable[..., nn.Module]
    data: Callable[..., Task]
    learner: type[Learner]
    learner_settings: Any
    searcher: type[PlanSearcher]
    search_settings: Any


@dataclass(frozen=True)
class Start:
    """All that a run starts from. ``model`` has the experiment's weights, or none worth keeping yet."""

    parts: Parts
    task: Task
    model: nn.Module
    space: CompressionSpace
    limits: Limits
    first_plans: tuple[tuple[str, Plan], ...]


def load(experiment: Experiment) -> Start:
    """Find and load everything, and check that the target can be reached. Raises PfrayError for a wrong request."""
    parts = resolve(experiment)
    task = build_task(experiment, parts)
    model = build_model(experiment, parts, task)
    space = parts.learner.space(model, task, parts.learner_settings)
    limits = resolve_limits(experiment.target, space, model, experiment.learner.name)
    return Start(parts, task, model, space, limits, first_plans(space, limits, parts.searcher))


def resolve(experiment: Experiment) -> Parts:
    """Find everything the experiment names. Raises ConfigError with one line for every mistake."""
    mistakes: list[str] = []

    def attempt(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except ConfigError as error:
            mistakes.append(str(error))
            return None

    model = attempt(lambda: find_function("model", experiment.model.name))
    data = attempt(lambda: find_function("data", experiment.data.name))
    learner = attempt(lambda: find_class("learner", experiment.learner.name, Learner))
    searcher = attempt(lambda: find_class("search", experiment.search.name, PlanSearcher))
    if model:
        mistakes += check_arguments("model", model, experiment.model.settings)
    if data:
        mistakes += check_arguments("data", data, experiment.data.settings)
    learner_settings = learner and attempt(
        lambda: parse_settings("learner", learner.settings_type, experiment.learner.settings)
    )
    beside = [name for name in Search.model_fields if name != "settings"]
    search_settings = searcher and attempt(
        lambda: parse_settings("search", searcher.settings_type, experiment.search.settings, beside)
    )
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return Parts(model, data, learner, learner_settings, searcher, search_settings)


def build_task(experiment: Experiment, parts: Parts) -> Task:
    """Load the data. Raises DataError for missing or damaged files, ConfigError where no Task comes back."""
    task = _call("data", parts.data, experiment.data.settings)
    if not isinstance(task, Task):
        raise ConfigError(
            f"data: '{experiment.data.name}' returned a {type(task).__name__}. Remedy: return a pfray.task.Task"
        )
    return task


def build_model(experiment: Experiment, parts: Parts, task: Task) -> nn.Module:
    """The teacher's architecture, with its weights where the experiment gives a file, on the CPU.

    The factory is given ``num_outputs`` and ``in_channels`` of the task, as far as it takes them and the experiment
    does not set them. Raises UnsupportedModel where the model cannot run on the data, WeightsError for unfit weights.
    """
    known = {"num_outputs": task.num_outputs, "in_channels": task.input_shape[0]}
    taken = {k: v for k, v in known.items() if not check_arguments("model", parts.model, {k: v})}
    torch.manual_seed(experiment.seed)
    model = _call("model", parts.model, {**taken, **experiment.model.settings})
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: '{experiment.model.name}' returned a {type(model).__name__}, not a torch.nn.Module")
    layer_macs(model, example_input(task))
    _check_output(model, task)
    if experiment.model.weights is not None:
        load_weights(model, Path(experiment.model.weights))
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state-dict file strictly. Raises WeightsError that names the file, or the keys that do not fit."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise WeightsError(f"model.weights: no file {path}. Remedy: check the path") from None
    except Exception as error:
        raise WeightsError(
            f"model.weights: {path} is not a readable state-dict file ({first_line(error)}). "
            "Remedy: save it again with torch.save(model.state_dict(), path)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"model.weights: {path} holds no state dict. Remedy: torch.save(model.state_dict(), path)")
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    reshaped = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or extra or reshaped:
        parts = [("missing", missing), ("unknown", extra), ("of another shape", reshaped)]
        what = "; ".join(f"{kind}: {_few(keys)}" for kind, keys in parts if keys)
        raise WeightsError(
            f"model.weights: {path} is of another architecture ({what}). Remedy: choose the model it is for"
        )
    model.load_state_dict(state)


def resolve_limits(target: Target, space: CompressionSpace, model: nn.Module, learner: str) -> dict[str, float]:
    """The target's costs as absolute numbers in the space's units. Raises ConfigError for a unit the learner lacks."""
    whole = {"params": count_params(model)[0]}
    offered = space.costs({knob.name: knob.full for knob in space.knobs})
    limits = {}
    for unit, value in target.costs().items():
        if unit not in offered:
            raise ConfigError(f"target.{unit}: {learner} cannot change it. Allowed: {', '.join(offered) or 'none'}")
        limits[unit] = float(value[:-1]) * whole[unit] if isinstance(value, str) else float(value)
    return limits


def first_plans(space: CompressionSpace, limits: Limits, searcher: type[PlanSearcher]) -> tuple[tuple[str, Plan], ...]:
    """The plans that every search tries before its own: uniform, then heuristic (left out by the uniform searcher).

    Raises InfeasibleTarget where no plan meets the limits.
    """
    from pfray.search.heuristic import heuristic_plan
    from pfray.search.uniform import Uniform

    uniform = ("uniform", space.uniform(limits))
    return (uniform,) if searcher is Uniform else (uniform, ("heuristic", heuristic_plan(space, limits)))


def _call(kind: str, function: Callable[..., Any], settings: dict[str, Any]) -> Any:
    try:
        return function(**settings)
    except PfrayError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind}: {first_line(error)}. Remedy: correct the settings of '{kind}'") from error


def _check_output(model: nn.Module, task: Task) -> None:
    inputs = task.normalize(task.train.inputs[:2])
    model.eval()
    with torch.inference_mode():
        outputs = model(inputs)
    try:
        scores = task.score(outputs, task.train.targets[:2])
        task.loss(outputs, task.train.targets[:2])
        # The loss alone would let too few outputs pass where the first targets happen to be small.
        if outputs.dim() > 1 and outputs.shape[1] < task.num_outputs:
            raise ValueError(f"{outputs.shape[1]} outputs are too few")
    except Exception as error:
        raise UnsupportedModel(
            f"the model's output of shape {tuple(getattr(outputs, 'shape', ()))} does not fit the task {task.name}: "
            f"{first_line(error)}. Remedy: a model with {task.num_outputs} outputs"
        ) from error
    assert scores.shape[0] == 2


def _few(keys: list[str], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
