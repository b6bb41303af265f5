"""The end of a run: retrain the chosen and the uniform plan, read the test split, export, check and time the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from torch import nn

from pfray import bench, cluster
from pfray.cache import load_tensors, save_tensors
from pfray.config import Export, Resources
from pfray.distributed import build_compressed, finish, finishes, restored, retrain, run_together
from pfray.errors import ExportError, StorageError
from pfray.export import packed, program, sparse_tflite, tflite
from pfray.int8 import Int8Model
from pfray.job import Job, updated
from pfray.learner import Learner
from pfray.measure import Measurement, evaluate, example_input, measure, place
from pfray.progress import Progress
from pfray.space import Plan
from pfray.task import Task

EpochCallback = Callable[[str, int, float], None]

# A .tflite whose outputs differ by more than this share of the largest output does not do what the model does.
MAX_RELATIVE_DIFFERENCE = 1e-2
# Of an int8 file, whose kernels round otherwise than the simulation in float: a step of 1/256 here and there, which
# the layers behind it carry on (0.05 of the largest output for MobileNet-v1 on the digits). A wrong file differs by 1.
MAX_INT8_DIFFERENCE = 0.2
# Nor does one whose accuracy on the same images is further from the model's than this.
MAX_ACCURACY_DIFFERENCE = 0.01


@dataclass(frozen=True)
class Trainer:
    """Where and with what trainings run: Ray resources, the run folder, what to call after each epoch."""

    resources: Resources
    folder: Path
    progress: Progress
    on_epoch: EpochCallback

    def train(self, learner: type[Learner], job: Job, plans: dict[str, Plan]) -> dict[str, nn.Module]:
        """The model that each named plan gives after the job's training, on the CPU; finished ones are not repeated.

        The trainings run side by side where the cluster has room, because two on half the cores each are faster than
        one after the other on all of them.
        """
        # Of equal plans the first is trained; a training by an equal plan gives an equal model.
        same = {name: next(first for first in plans if plans[first] == plans[name]) for name in plans}
        wanted = dict.fromkeys(same.values()) if job.training.epochs or finishes(learner) else ()
        missing = [name for name in wanted if not self._done(name).exists()]
        if missing:
            at_once = max(1, min(len(missing), cluster.total("CPU") // self.resources.workers))
            if self.resources.trial.gpu:
                at_once = min(at_once, max(1, cluster.total("GPU") // self.resources.workers))
            reference = ray.put(job)
            stages = {name: self._stages(name, learner, job, plans[name]) for name in missing}
            total = sum(epochs for name in missing for _, _, epochs in stages[name])
            names = " and ".join(", ".join(missing).rsplit(", ", 1))
            with self.progress.stage(f"train {names}", total=total) as stage:
                epochs_done = dict.fromkeys(missing, 0)

                def train_one(name: str) -> None:
                    before = None
                    for label, plan, epochs in stages[name]:
                        earlier = epochs_done[name]

                        def show(epoch: int, loss: float, label: str = label, earlier: int = earlier) -> None:
                            epochs_done[name] = earlier + epoch
                            stage.update(sum(epochs_done.values()), f"{label}: loss {loss:.4f}")
                            self.on_epoch(label, epoch, loss)

                        state = load_tensors(self._done(label))
                        if state is None:
                            state = self._train_stage(
                                learner, reference, job, label, plan, epochs, before, at_once, show
                            )
                            save_tensors(self._done(label), state)
                        epochs_done[name] = earlier + epochs
                        before = (plan, ray.put(state))

                run_together([partial(train_one, name) for name in missing], at_once)
        return {name: self._rebuild(same[name], learner, job, plan) for name, plan in plans.items()}

    def _stages(self, name: str, learner: type[Learner], job: Job, plan: Plan) -> list[tuple[str, Plan, int]]:
        """(name, plan, epochs) of the trainings that lead to the plan; the last one is its own."""
        own, model_plan = job.for_plan(plan)
        settings = {key: value for key, value in plan.items() if key not in model_plan}
        milder = learner.stages(model_plan, own.settings)
        stages = [(f"{name}-{i + 1}", {**step, **settings}, epochs) for i, (step, epochs) in enumerate(milder)]
        return [*stages, (name, plan, job.training.epochs)]

    def _train_stage(
        self,
        learner: type[Learner],
        reference: ray.ObjectRef,
        job: Job,
        name: str,
        plan: Plan,
        epochs: int,
        before: tuple[Plan, ray.ObjectRef] | None,
        at_once: int,
        on_epoch: Callable[[int, float], None],
    ) -> dict[str, torch.Tensor]:
        """The state dict after the stage's training, and before that the learner's ``finish`` where it has one."""
        cpus = cluster.processors_per_worker(at_once * self.resources.workers)
        gpus = 1 if self.resources.trial.gpu else 0
        start = None
        if finishes(learner):
            path = self.folder / "training" / f"{name}.start.safetensors"
            start = load_tensors(path)
            if start is None:
                start = finish(learner, reference, plan, before, cpus, gpus)
                save_tensors(path, start)
            if not epochs:
                return start
        if epochs != job.training.epochs:
            reference = ray.put(replace(job, training=updated(job.training, {"epochs": epochs})))
        return retrain(
            learner,
            reference,
            plan,
            self.folder / "training" / name,
            start=None if start is None else ray.put(start),
            workers=self.resources.workers,
            cpus_per_worker=cpus,
            gpus_per_worker=gpus,
            on_epoch=on_epoch,
        )

    def _rebuild(self, name: str, learner: type[Learner], job: Job, plan: Plan) -> nn.Module:
        state = None
        if job.training.epochs or finishes(learner):
            state = load_tensors(self._done(name))
            if state is None:
                raise StorageError(f"{self._done(name)} is damaged. Remedy: remove it and continue with --resume")
        if finishes(learner):
            assert state is not None
            return restored(learner, job, plan, state, torch.device("cpu"))
        # Without training to come the learner meets the plan at once; the state of a trained one is loaded over it.
        model, _ = build_compressed(learner, job, plan, torch.device("cpu"), steps=0)
        if state is not None:
            model.load_state_dict(state)
        return model

    def _done(self, name: str) -> Path:
        return self.folder / "training" / f"{name}.safetensors"


def measure_test(model: nn.Module, task: Task, size_bytes: int) -> Measurement:
    """The measurement on the test split, in float32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measurement = measure(place(model, device), task, task.test)
    model.to("cpu")
    return replace(measurement, size_bytes=size_bytes)


def export_model(
    model: nn.Module, teacher: nn.Module, task: Task, export: Export, folder: Path, progress: Progress
) -> dict[str, Any] | None:
    """Write model.pt2, model.tflite and teacher.tflite into the run folder; run, compare and time what is shipped.

    Returns the summary's ``exported`` entry; None where the experiment wants no .tflite. Raises ExportError where the
    file does not reproduce the model.
    """
    example = example_input(task)
    path = folder / "model.tflite"
    with progress.stage("export", total=4) as stage:
        program.save(model, example, folder / "model.pt2")
        stage.update(1, "model.pt2")
        if not export.tflite:
            return None
        tflite.export(model, example, path)
        sparse_tflite.sparsify(path, path)
        stage.update(2, "model.tflite")
        tflite.export(teacher, example, folder / "teacher.tflite")
        stage.update(3, "teacher.tflite")
        test = task.test.head(export.images)
        inputs = task.normalize(test.inputs)
        outputs, difference = tflite.compare(path, model, inputs)
        allowed = MAX_INT8_DIFFERENCE if isinstance(model, Int8Model) else MAX_RELATIVE_DIFFERENCE
        if not difference <= allowed * max(1.0, outputs.abs().max().item()):
            raise ExportError(
                f"{path} differs from the model by up to {difference:g} on {len(inputs)} test images. "
                "Remedy: export.tflite=false to do without it, and report the model"
            )
        accuracy, torch_accuracy = task.score(outputs, test.targets).mean().item(), evaluate(model, task, test).accuracy
        if abs(accuracy - torch_accuracy) > MAX_ACCURACY_DIFFERENCE:
            raise ExportError(
                f"{path} has an accuracy of {accuracy:.4f}, the model of {torch_accuracy:.4f} on the same {len(test)} "
                "test images. Remedy: export.tflite=false to do without it, and report the model"
            )
        latency, teacher_latency = bench.latency_ms([path, folder / "teacher.tflite"], rounds=export.rounds)
        stage.update(4, "checked and timed")
    return {
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "teacher_size_bytes": (folder / "teacher.tflite").stat().st_size,
        "accuracy": accuracy,
        "torch_accuracy": torch_accuracy,
        "images": len(test),
        "latency_ms": latency,
        "teacher_latency_ms": teacher_latency,
        "max_abs_diff": difference,
    }


def pack(model: nn.Module, path: Path) -> int:
    """Write the packed weights and return the file's bytes."""
    shipped = model.converted(folded=True) if isinstance(model, Int8Model) else model
    return packed.save(path, shipped.state_dict())
