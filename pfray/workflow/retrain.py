"""Which trainings make the models of a run's plans, in which order; what is finished is kept and not repeated.

A plan is one training, or a row of them: the learners of a pipeline one after the other, and for each of them its
stages. ``launch.py`` does a single one.
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
from pfray.learner.build import build_compressed, finishes, restored, untrained
from pfray.learner.context import Job, updated
from pfray.learner.trainable import Learner
from pfray.reporting.observers import Observers
from pfray.space import Plan
from pfray.storage.run_folder import RunFolder
from pfray.training.settings import Distributed
from pfray.utils.cache import content_key, load_tensors, save_tensors
from pfray.workflow.launch import finish, retrain, run_together


@dataclass(frozen=True)
class Link:
    """One learner's part of a plan. name: of its files. job: its own, but for what the links before it make.

    before: the key of what that is made from.
    """

    name: str
    learner: type[Learner]
    job: Job
    plan: Plan
    before: str = ""

    def stages(self) -> list[tuple[str, Plan, int]]:
        """(name, plan, epochs) of the trainings that lead to the plan; the last one is its own."""
        own, model_plan = self.job.for_plan(self.plan)
        settings = {key: value for key, value in self.plan.items() if key not in model_plan}
        milder = self.learner.stages(model_plan, own.settings)
        stages = [(f"{self.name}-{i + 1}", {**step, **settings}, epochs) for i, (step, epochs) in enumerate(milder)]
        return [*stages, (self.name, self.plan, self.job.training.epochs)]

    def keys(self) -> dict[str, str]:
        """By the name of a stage, a key of the plans that it and all before it are made from.

        What is kept is kept under it: where the search is continued and another plan is chosen, an earlier plan's
        training must not be taken for its own.
        """
        key, keys = self.before, {}
        for name, plan, epochs in self.stages():
            key = content_key(key, self.learner.__qualname__, json.dumps(plan, sort_keys=True), epochs)
            keys[name] = key
        return keys

    @property
    def trains(self) -> bool:
        """Whether there is anything to do for it, and to keep."""
        return bool(self.job.training.epochs) or finishes(self.learner)


def links(name: str, learner: type[Learner], job: Job, plan: Plan) -> list[Link]:
    """One link for a plain learner, one for each learner of a pipeline; the last is called ``name``."""
    own, model_plan = job.for_plan(plan)
    steps = learner.steps(model_plan, own.settings)
    if not steps:
        return [Link(name, learner, job, plan)]
    names = [*(f"{name}-{step.name}" for step, _ in steps[:-1]), name]
    row: list[Link] = []
    for label, (step, part) in zip(names, steps, strict=True):
        job = replace(own, settings=step.settings, training=updated(own.training, step.finetune), searched=())
        row.append(Link(label, step.learner, job, part, row[-1].keys()[row[-1].name] if row else ""))
    return row


@dataclass(frozen=True)
class Trainer:
    """Where and with what trainings run: Ray resources, the run folder, who is told of each epoch."""

    resources: Resources
    run: RunFolder
    observers: Observers
    distributed: Distributed = field(default_factory=Distributed)

    def train(self, learner: type[Learner], job: Job, plans: dict[str, Plan]) -> dict[str, nn.Module]:
        """The model that each named plan gives after the job's training, on the CPU; finished ones are not repeated.

        The trainings run side by side where the cluster has room, because two on half the cores each are faster than
        one after the other on all of them.
        """
        # Of equal plans the first is trained; a training by an equal plan gives an equal model.
        same = {name: next(first for first in plans if plans[first] == plans[name]) for name in plans}
        wanted = {name: links(name, learner, job, plans[name]) for name in dict.fromkeys(same.values())}
        missing = [name for name, row in wanted.items() if any(map(self._is_missing, row))]
        if missing:
            at_once = max(1, min(len(missing), ray_cluster.total("CPU") // self.resources.workers))
            if self.resources.trial.gpu:
                at_once = min(at_once, max(1, ray_cluster.total("GPU") // self.resources.workers))
            total = sum(epochs for name in missing for link in wanted[name] for _, _, epochs in link.stages())
            names = " and ".join(", ".join(missing).rsplit(", ", 1))
            with self.observers.stage(f"train {names}", total=total) as stage:
                epochs_done = dict.fromkeys(missing, 0)
                reference = ray.put(job)  # one for all, where no learner comes before another

                def train_one(name: str) -> None:
                    def show(label: str, epoch: int, loss: float, earlier: int) -> None:
                        epochs_done[name] = earlier + epoch
                        stage.update(sum(epochs_done.values()), f"{label}: loss {loss:.4f}")
                        self.observers.epoch_done(label, epoch, loss)

                    earlier, model = 0, None
                    for link in wanted[name]:
                        own = replace(link, job=replace(link.job, earlier=model))
                        shared = reference if link.job is job else ray.put(own.job)
                        if link.trains:  # what is finished of it is read
                            earlier = self._train_link(own, shared, at_once, earlier, show)
                        if link is not wanted[name][-1]:
                            model = self._rebuild(own)

                run_together([partial(train_one, name) for name in missing], at_once)
        trained = all(link.trains for row in wanted.values() for link in row)
        with contextlib.nullcontext() if trained else self.observers.stage("compress without training"):
            built = {name: self._build(row) for name, row in wanted.items()}
        return {name: built[same[name]] for name in plans}

    def _train_link(
        self,
        link: Link,
        reference: ray.ObjectRef,
        at_once: int,
        earlier: int,
        show: Callable[[str, int, float, int], None],
    ) -> int:
        """All stages of a link, the finished ones skipped; returns the epochs done with it. earlier: those before."""
        before, stages = None, link.stages()
        # Stages before a finished one are not looked at: nothing is made from them any more.
        done = next((i for i in reversed(range(len(stages))) if self._kept(link, stages[i][0]) is not None), 0)
        earlier += sum(epochs for _, _, epochs in stages[:done])
        for label, plan, epochs in stages[done:]:
            state = self._kept(link, label)
            if state is None:

                def on_epoch(epoch: int, loss: float, label: str = label, earlier: int = earlier) -> None:
                    show(label, epoch, loss, earlier)

                state = self._train_stage(link, reference, label, plan, epochs, before, at_once, on_epoch)
                save_tensors(self.run.trained(label), state, link.keys()[label])
            earlier += epochs
            before = (plan, ray.put(state))
        return earlier

    def _train_stage(
        self,
        link: Link,
        reference: ray.ObjectRef,
        name: str,
        plan: Plan,
        epochs: int,
        before: tuple[Plan, ray.ObjectRef] | None,
        at_once: int,
        on_epoch: Callable[[int, float], None],
    ) -> dict[str, torch.Tensor]:
        """The state dict after the stage's training, and before that the learner's ``finish`` where it has one."""
        cpus = ray_cluster.processors_per_worker(at_once * self.resources.workers)
        gpus = 1 if self.resources.trial.gpu else 0
        start = None
        if finishes(link.learner):
            path = self.run.start(name)
            start = self._read(path, link.keys()[name])
            if start is None:
                start = finish(link.learner, reference, plan, before, cpus, gpus)
                save_tensors(path, start, link.keys()[name])
            if not epochs:
                return start
        if epochs != link.job.training.epochs:
            reference = ray.put(replace(link.job, training=updated(link.job.training, {"epochs": epochs})))
        return retrain(
            link.learner,
            reference,
            plan,
            self.run.training(name),
            start=None if start is None else ray.put(start),
            made_from=link.keys()[name],
            workers=self.resources.workers,
            cpus_per_worker=cpus,
            gpus_per_worker=gpus,
            distributed=self.distributed,
            on_epoch=on_epoch,
        )

    def _build(self, row: list[Link]) -> nn.Module:
        model = None
        for link in row:
            model = self._rebuild(replace(link, job=replace(link.job, earlier=model)))
        assert model is not None
        return model

    def _rebuild(self, link: Link) -> nn.Module:
        state = None
        if link.trains:
            state = self._kept(link, link.name)
            if state is None:
                damaged = self.run.trained(link.name)
                raise StorageError(f"{damaged} was damaged meanwhile. Remedy: continue with --resume")
        if finishes(link.learner):
            assert state is not None
            return restored(link.learner, link.job, link.plan, state, torch.device("cpu"))
        if state is None:
            return untrained(link.learner, link.job, link.plan)
        # Without training to come the learner meets the plan at once; the trained state is loaded over it.
        model, _ = build_compressed(link.learner, link.job, link.plan, torch.device("cpu"), steps=0)
        model.load_state_dict(state)
        return model

    def _is_missing(self, link: Link) -> bool:
        return link.trains and self._kept(link, link.name) is None

    def _kept(self, link: Link, stage: str) -> dict[str, torch.Tensor] | None:
        """The state that the stage ended with; None where it has to be made."""
        return self._read(self.run.trained(stage), link.keys()[stage])

    def _read(self, path: Path, made_from: str) -> dict[str, torch.Tensor] | None:
        state = load_tensors(path, made_from)
        if state is None and path.exists():
            logging.getLogger("pfray").warning("%s is damaged or of another plan; it is made again", path)
            path.unlink()
        return state
