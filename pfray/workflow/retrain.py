"""Retraining of a run's plans: which trainings, and in which order. Finished ones are kept and not repeated.

A plan takes one training or several: the algorithms of a pipeline one after the other, each with its stages.
``launch.py`` runs a single training.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import ray
import torch
from torch import nn

from pfray.cluster import ray_cluster
from pfray.config.sections import Resources
from pfray.errors import StorageError
from pfray.learner.build import Weights, rebuild_candidate, untrained_model
from pfray.learner.context import Candidate, Context, Recipe, with_values
from pfray.learner.pipeline import Pipeline, split_plan
from pfray.reporting.observers import Observers
from pfray.space import Plan
from pfray.storage.run_folder import RunFolder
from pfray.training.settings import Distributed
from pfray.utils.cache import content_key, load_noted, save_tensors
from pfray.workflow.curve import Report, read_lines
from pfray.workflow.launch import finish, retrain, run_together
from pfray.workflow.rungs import climb


@dataclass(frozen=True)
class TrainingStage:
    """One training. name: of its files.

    key: hash of its plan and of all plans before it. Its files are stored under the key: if a continued search chooses
    another plan, the training of the earlier plan must not be reused.
    """

    name: str
    candidate: Candidate
    key: str

    @property
    def epochs(self) -> int:
        return self.candidate.training.epochs

    @property
    def has_finish(self) -> bool:
        """True if the algorithm's ``finish`` comes first."""
        algorithm = self.candidate.algorithm
        return algorithm.has_finish and not (algorithm.finish_is_final and self.epochs)


@dataclass(frozen=True)
class StagedTraining:
    """The trainings of one algorithm for a plan: milder stages, then the plan itself."""

    stages: tuple[TrainingStage, ...]

    @property
    def last(self) -> TrainingStage:
        return self.stages[-1]

    @property
    def has_weights(self) -> bool:
        """True if there are weights to make and to keep: by training, or by the algorithm's ``finish``."""
        return bool(self.last.epochs) or self.last.has_finish


def staged_trainings(name: str, recipe: Recipe, plan: Plan, context: Context) -> list[StagedTraining]:
    """One for a plain algorithm, or one for each algorithm of a pipeline, in order. The last one is called ``name``."""
    whole = recipe.candidate(plan)
    if not issubclass(recipe.algorithm, Pipeline):
        return [_staged_training(name, whole, "", context)]
    row: list[StagedTraining] = []
    steps = split_plan(whole.settings, whole.plan)
    for step, own in steps:
        label = name if step is steps[-1][0] else f"{name}-{step.name}"
        training = with_values(whole.training, step.finetune)
        candidate = Candidate(step.algorithm, step.settings, own, training, whole.distill, whole.chosen)
        row.append(_staged_training(label, candidate, row[-1].last.key if row else "", context))
    return row


def _staged_training(name: str, candidate: Candidate, before: str, context: Context) -> StagedTraining:
    """before: key of the training before it; empty for the first."""
    algorithm = candidate.bind(context.teacher, context.task)
    rungs = climb(algorithm, candidate.plan, candidate.training)
    milder, last = algorithm.stages(candidate.plan), candidate.training.epochs
    if rungs:
        milder, last = rungs, last - sum(rung.epochs for rung in rungs)
    ways = [(f"{name}-{number}", stage.plan, stage.epochs) for number, stage in enumerate(milder, start=1)]
    stages, key = [], before
    for label, plan, epochs in [*ways, (name, candidate.plan, last)]:
        decided = json.dumps({**plan, **candidate.chosen}, sort_keys=True)
        key = content_key(key, candidate.algorithm.__qualname__, decided, epochs)
        training = with_values(candidate.training, {"epochs": epochs})
        stages.append(TrainingStage(label, replace(candidate, plan=plan, training=training), key))
    return StagedTraining(tuple(stages))


@dataclass(frozen=True)
class Trainer:
    """Runs trainings. resources: of Ray. run: its folder. observers: told of each epoch."""

    resources: Resources
    run: RunFolder
    observers: Observers
    distributed: Distributed = field(default_factory=Distributed)

    def train(self, recipe: Recipe, context: Context, plans: dict[str, Plan]) -> dict[str, nn.Module]:
        """The trained model of each named plan, on the CPU. Finished trainings are not repeated.

        Trainings run in parallel if the cluster has room: two on half the cores each are faster than one after the
        other on all cores.
        """
        # Of equal plans only the first is trained, because their models are equal.
        same = {name: next(first for first in plans if plans[first] == plans[name]) for name in plans}
        wanted = {name: staged_trainings(name, recipe, plans[name], context) for name in dict.fromkeys(same.values())}
        missing = [name for name, row in wanted.items() if any(map(self._is_missing, row))]
        if missing:
            at_once = max(1, min(len(missing), ray_cluster.total("CPU") // self.resources.workers))
            if self.resources.trial.gpu:
                at_once = min(at_once, max(1, ray_cluster.total("GPU") // self.resources.workers))
            total = sum(stage.epochs for name in missing for staged in wanted[name] for stage in staged.stages)
            names = " and ".join(", ".join(missing).rsplit(", ", 1))
            with self.observers.stage(f"train {names}", total=total) as stage:
                epochs_done = dict.fromkeys(missing, 0.0)
                reference = ray.put(context)  # shared by the first trainings of all plans

                def train_one(name: str) -> None:
                    def show(label: str, earlier: int, done: float, loss: float | None, words: str) -> None:
                        epochs_done[name] = earlier + done
                        stage.update(sum(epochs_done.values()), f"{label}: {words}")
                        if loss is not None:
                            self.observers.epoch_done(label, int(done), loss)

                    earlier, own, shared = 0, context, reference
                    for staged in wanted[name]:
                        if staged.has_weights:  # finished stages are read
                            earlier = self._train_stages(staged, shared, at_once, earlier, show)
                        if staged is not wanted[name][-1]:
                            own = replace(context, earlier=self._model(staged, own))
                            shared = ray.put(own)

                run_together([partial(train_one, name) for name in missing], at_once)
        trained = all(staged.has_weights for row in wanted.values() for staged in row)
        with contextlib.nullcontext() if trained else self.observers.stage("compress without training"):
            built = {name: self._build(row, context) for name, row in wanted.items()}
        return {name: built[same[name]] for name in plans}

    def _train_stages(
        self,
        staged: StagedTraining,
        context: ray.ObjectRef,
        at_once: int,
        earlier: int,
        show: Callable[[str, int, float, float | None, str], None],
    ) -> int:
        """Train all stages but the finished ones. Returns ``earlier`` plus their epochs.

        earlier: epochs of the algorithms before it.
        """
        before, stages = None, staged.stages
        # Stages before a finished one are no longer needed.
        done = next((i for i in reversed(range(len(stages))) if self._kept(stages[i]) is not None), 0)
        earlier += sum(stage.epochs for stage in stages[:done])
        for stage in stages[done:]:
            weights = self._kept(stage)
            if weights is None:
                weights = self._train_stage(stage, context, before, at_once, partial(show, stage.name, earlier))
                _save(self.run.trained(stage.name), weights, stage.key)
            earlier += stage.epochs
            before = ray.put((stage.candidate, weights) if stage.has_finish else weights)
        return earlier

    def _train_stage(
        self,
        stage: TrainingStage,
        context: ray.ObjectRef,
        before: ray.ObjectRef | None,
        at_once: int,
        on_progress: Report,
    ) -> Weights:
        """Weights after the algorithm's ``finish``, if it has one, and the stage's training."""
        cpus = ray_cluster.processors_per_worker(at_once * self.resources.workers)
        gpus = 1 if self.resources.trial.gpu else 0
        start, structure = None, None
        if stage.has_finish:
            path = self.run.start(stage.name)
            start = self._read(path, stage.key)
            if start is None:
                folder = self.run.training(stage.name)
                start = finish(stage.candidate, context, folder, before, cpus, gpus, on_progress)
                _save(path, start, stage.key)
            if not stage.epochs:
                return start
            structure = start.structure
        state = retrain(
            stage.candidate,
            context,
            self.run.training(stage.name),
            start=None if start is None else ray.put(start),
            before=None if stage.has_finish else before,
            made_from=stage.key,
            workers=self.resources.workers,
            cpus_per_worker=cpus,
            gpus_per_worker=gpus,
            distributed=self.distributed,
            views=self.run.views,
            on_progress=on_progress,
        )
        for entry in read_lines(self.run.training(stage.name), "note"):
            self.observers.note(f"note: {stage.name}: {entry['note']}")
        return Weights(structure, state)

    def _build(self, row: list[StagedTraining], context: Context) -> nn.Module:
        *first, last = row
        own = context
        for staged in first:
            own = replace(context, earlier=self._model(staged, own))
        return self._model(last, own)

    def _model(self, staged: StagedTraining, context: Context) -> nn.Module:
        """The model after all stages, on the CPU."""
        if not staged.has_weights:
            return untrained_model(staged.last.candidate, context)
        weights = self._kept(staged.last)
        if weights is None:
            damaged = self.run.trained(staged.last.name)
            raise StorageError(f"{damaged} was damaged meanwhile. Remedy: continue with --resume")
        return rebuild_candidate(staged.last.candidate, context, weights, torch.device("cpu"))

    def _is_missing(self, staged: StagedTraining) -> bool:
        return staged.has_weights and self._kept(staged.last) is None

    def _kept(self, stage: TrainingStage) -> Weights | None:
        """The stage's final weights; None if they have to be made."""
        return self._read(self.run.trained(stage.name), stage.key)

    def _read(self, path: Path, made_from: str) -> Weights | None:
        found = load_noted(path, made_from)
        if found is None and path.exists():
            logging.getLogger("pfray").warning("%s is damaged or of another plan; it is made again", path)
            path.unlink()
        if found is None:
            return None
        state, structure = found
        return Weights(json.loads(structure) if structure else None, state)


def _save(path: Path, weights: Weights, made_from: str) -> None:
    structure = "" if weights.structure is None else json.dumps(weights.structure)
    save_tensors(path, weights.state, made_from, structure)
