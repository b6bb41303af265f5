"""Setup of a run before Ray starts: task, model, space and limits from an experiment's names and settings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pfray.config.schema import Experiment
from pfray.data._task_checks import check_task, without_class_order
from pfray.data._workers import read_by
from pfray.errors import ConfigError, UnsupportedModel
from pfray.learner.base import Algorithm
from pfray.learner.context import Context, Recipe
from pfray.learner.pipeline import trainings_of
from pfray.learner.scoring import Scoring, TrialSpec
from pfray.measure.cost import layer_macs, total_macs
from pfray.models import _hub
from pfray.nn.build import build, task_arguments
from pfray.nn.checks import check_evaluation, check_parameters, check_values
from pfray.nn.layer_shapes import with_layer_shapes
from pfray.nn.layers import WeightLayer
from pfray.nn.modes import settle_memory_format
from pfray.nn.no_module import no_module
from pfray.nn.output_checks import check_output
from pfray.nn.weights import load_weights
from pfray.objective import Objective
from pfray.reporting.observers import Observers
from pfray.space import CompressionSpace, Limits, Plan
from pfray.task import Task, example_input
from pfray.utils.cache import cache_dir
from pfray.utils.signatures import call
from pfray.utils.user_code import user_code
from pfray.workflow.baselines import plans_without_search
from pfray.workflow.components import Components, resolve, with_defaults
from pfray.workflow.decided import decide
from pfray.workflow.distillation_check import check_distillation
from pfray.workflow.expected_metric import check_ready_teacher, expected_of
from pfray.workflow.given import Given
from pfray.workflow.latency_model import file_count, timed_space
from pfray.workflow.rungs import check_rungs
from pfray.workflow.target import (
    check_fits_task,
    check_from_scratch,
    check_searcher,
    resolve_limits,
    resolve_objective,
    searched_settings,
)
from pfray.workflow.warm_start import read_earlier

# Called with a remark that is no error, for the reader of the results.
Note = Callable[[str], None]


def _ignore(remark: str) -> None:
    """The note of a caller that shows no remarks."""


@dataclass(frozen=True)
class LoadedRun:
    """A checked experiment as objects. model: with the experiment's weights or given from Python, otherwise untrained.

    components: with the learner's settings as ``decide`` decides them. is_trained: the model needs no training to be
    the teacher. is_users_own: it is none of pfray's. finetune_steps: optimizer steps of each round of a trial.
    searched: names of the knobs that are settings. earlier: trials of a warm start.
    """

    components: Components
    task: Task
    model: nn.Module
    is_trained: bool
    is_users_own: bool
    space: CompressionSpace
    limits: Limits
    objective: Objective
    finetune_steps: int
    searched: tuple[str, ...]
    earlier: Sequence[tuple[Plan, float | None]]


def load(experiment: Experiment, observers: Observers, given: Given | None = None) -> LoadedRun:
    """Load everything that the experiment names, and check that the target can be reached.

    given: model and task, if the experiment names none. Raises PfrayError for a wrong request.
    """
    notes: list[str] = [] if given is None else list(given.notes)
    with observers.stage("load"):
        experiment = with_defaults(experiment, given)
        components = resolve(experiment, given)
        cache_dir()  # raises for an unusable one before anything is written
        task = build_task(experiment, components, notes.append)
        model = build_model(experiment, components, task, notes.append)
        is_trained = experiment.model.weights is not None if given is None else given.is_trained
        expected = expected_of(experiment, task)
        if expected is not None and (is_trained or not experiment.teacher.epochs):
            check_ready_teacher(experiment, expected, model, task, notes.append)
        learner, given_settings = components.learner, components.learner_settings
        decide_for = partial(
            decide, learner=learner, learner_settings=given_settings, searcher=components.searcher, task=task
        )
        decided = decide_for(experiment)
        components = replace(components, learner_settings=decided.learner_settings)
        algorithm = components.learner(model, task, components.learner_settings)
        space = _space_of(algorithm, experiment.learner.name)
        space = with_layer_shapes(space, model, example_input(task))
        notes += [*decided.notes, *algorithm.notes()]
        check_fits_task(experiment, task)
        notes += check_distillation(
            experiment, trainings_of(components.learner, given_settings, experiment.finetune), model, task
        )
    for note in notes:
        observers.note(f"note: {note}")
    objective = resolve_objective(experiment, task)
    steps = decided.finetune_steps
    check_from_scratch(experiment, components.searcher, components.learner, len(space), objective.name, steps)
    if experiment.target.latency_ms is not None:
        with observers.stage("latency curve", total=file_count(space)) as stage:
            space = timed_space(space, algorithm, experiment.target.latency_ms, stage.update)
    macs = total_macs(model, example_input(task))
    limits = resolve_limits(experiment.target, space, model, experiment.learner.title, macs)
    plans_without_search(space, limits)  # raises for a target out of reach before anything is written
    check_searcher(experiment, components.searcher, components.learner)
    check_rungs(experiment, algorithm, space.uniform(limits))

    def space_of(settings: Any) -> CompressionSpace:
        return components.learner(model, task, settings).space()

    knobs = searched_settings(experiment, components.learner_settings, space_of, steps)
    space = space.with_free(knobs)
    components.searcher(space, limits, components.search_settings)  # raises for settings that only it can check
    warm = experiment.search.warm_start
    earlier = read_earlier(experiment, space, limits, objective.name, decide_for) if warm else ()
    return LoadedRun(
        components, task, model, is_trained, given is not None or ":" in experiment.model.name, space, limits,
        objective, decided.finetune_steps, tuple(knob.name for knob in knobs), earlier,
    )  # fmt: skip


def _space_of(algorithm: Algorithm, learner: str) -> CompressionSpace:
    """The algorithm's space. Raises ConfigError where that of a user's own algorithm fails or is none."""
    own = user_code(f"learner: {learner}", "mend the learner") if ":" in learner else contextlib.nullcontext()
    with own:
        space: Any = algorithm.space()
        if not isinstance(space, CompressionSpace):
            raise TypeError(f"space returned a {type(space).__name__}, not a CompressionSpace")
        costs: Any = space.costs_at(np.ones(len(space)))
        if not isinstance(costs, dict):
            raise TypeError(f"the costs of its space are a {type(costs).__name__}, not numbers by unit")
    return space


def trial_spec(experiment: Experiment, loaded: LoadedRun, teacher: nn.Module) -> TrialSpec:
    """Everything that the run's workers need to compress ``teacher``."""
    search, learner = experiment.search, loaded.components.learner
    return TrialSpec(
        Context(loaded.task, teacher, experiment.seed, experiment.resources.precision),
        Recipe(
            learner, loaded.components.learner_settings, experiment.finetune, experiment.distill, loaded.searched
        ),
        Scoring(
            loaded.objective, search.rounds, loaded.finetune_steps, search.bn_images, search.validation_images,
            search.latency, experiment.resources.shrink_on_oom,
        ),
    )  # fmt: skip


def build_task(experiment: Experiment, components: Components, note: Note = _ignore) -> Task:
    """The experiment's task, every split checked once. Remarks on the data go to ``note``.

    Raises DataError for missing or damaged files and for unusable data, ConfigError if the factory returns no Task.
    """
    task = call("data", components.data, experiment.data.settings)
    if not isinstance(task, Task):
        raise ConfigError(
            f"data: '{experiment.data.name}' returned a {type(task).__name__}. Remedy: return a pfray.task.Task"
        )
    task, shuffled = without_class_order(task)
    task, dealt = read_by(task, experiment.resources.loaders, experiment.resources.workers)
    for remark in (*shuffled, *dealt, *check_task(task)):
        note(remark)
    return task


def build_model(experiment: Experiment, components: Components, task: Task, note: Note = _ignore) -> nn.Module:
    """The teacher's architecture on the CPU, with weights if the experiment gives a file.

    The factory gets ``num_outputs`` and ``in_channels`` of the task, if it takes them and the experiment does not set
    them. note: called with remarks on what it was given and on its weights. Raises ConfigError if the factory returns
    no module, UnsupportedModel if the model cannot run on the data or is unusable, WeightsError for unfit weights.
    """
    torch.manual_seed(experiment.seed)
    model = build("model", components.model, task_arguments(task), experiment.model.settings, note)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: '{experiment.model.name}' returned {no_module(model)}")
    if isinstance(model, WeightLayer):
        raise UnsupportedModel(
            f"the model is a single {type(model).__name__}, which has no name. Remedy: nn.Sequential(layer)"
        )
    check_parameters(model)
    layer_macs(model, example_input(task))
    check_output(model, task)
    settle_memory_format(model, example_input(task))
    if experiment.model.weights is not None:
        remarks: Sequence[str] = load_weights(model, Path(experiment.model.weights), task.classes)
    else:
        remarks = _hub.remarks_on(model)
    for remark in remarks:
        note(remark)
    check_values(model)
    check_evaluation(model, task)
    return model
