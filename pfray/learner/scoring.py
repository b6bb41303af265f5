"""From a plan to a score: compress the teacher, fine-tune, measure. What trials do; knows nothing of Ray."""

from __future__ import annotations

import copy
import gc
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pfray import bench, objective
from pfray.errors import TrainingFailed, first_line
from pfray.export.tflite import convert
from pfray.learner.context import Job
from pfray.measure.cost import total_macs
from pfray.measure.evaluation import Measurement, judge, measure, measurement_of, outputs_of
from pfray.measure.timing import latencies_ms
from pfray.nn.modes import place
from pfray.space import Plan
from pfray.task import example_input
from pfray.training.batch_norm import reestimate_batch_norm
from pfray.training.loop import choose_precision, fit
from pfray.training.settings import Training

if TYPE_CHECKING:
    from pfray.learner.trainable import Learner


class Scorer:
    """Scores plans one after the other on ``device``; what does not change between them is computed once.

    That is the teacher's outputs on the validation images, and what the learner prepares. Which images are used, for
    batch norm and for the score, is fixed, so that plans are compared on the same ones.
    """

    def __init__(self, learner: type[Learner], job: Job, device: torch.device) -> None:
        self.learner, self.job, self.device = learner, job, device
        self.teacher = place(job.teacher, device)
        self.precision = choose_precision(self.teacher, device, job.precision)
        self.validation = job.task.validation.head(job.search.validation_images)
        self.reference: Measurement | None = None
        self.cache_of: Any = None
        self.model: Any = None
        self.hook: Any = None
        self.latencies: dict[str, tuple[float, float]] = {}
        self.teacher_file: bytes | None = None

    def begin(self, plan: Plan) -> None:
        """The next plan; ``step`` then does its rounds."""
        self.plan, self.round, self.halved = plan, 0, False

    def step(self) -> dict[str, Any]:
        """One round. Returns score, standard_error and measurement; a failure is a result, with the score NaN.

        A plan that runs out of memory begins anew with half the batch, once, where the job says so; its results then
        say so too, with ``halved_batch``.
        """
        self.round += 1
        result, out_of_memory = self._try_round()
        if out_of_memory and self.job.shrink_on_oom and not self.halved:
            self.halved, again = True, self.round
            self.model = self.hook = None
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            for self.round in range(1, again + 1):
                result, _ = self._try_round()
                if "error" in result:
                    break
        return {**result, "halved_batch": True} if self.halved else result

    def _try_round(self) -> tuple[dict[str, Any], bool]:
        """(the result, whether it is that no memory was left)."""
        try:
            measured, reference = self._round()
            # A model of NaNs still has an accuracy, that of always guessing the first class.
            if not math.isfinite(measured.loss):
                raise TrainingFailed(f"the loss on the validation images is {measured.loss}")
            goal = self.job.objective
            return {
                "score": objective.score(goal, measured, reference),
                "standard_error": objective.standard_error(goal, measured, reference),
                "measurement": measured.to_dict(),
            }, False
        except Exception as error:
            failure = {"score": float("nan"), "error": f"{type(error).__name__}: {first_line(error)}"}
            return failure, is_out_of_memory(error)

    def score(self, plan: Plan) -> dict[str, Any]:
        """All rounds of ``plan``; what the last one gave."""
        self.begin(plan)
        result: dict[str, Any] = {}
        while "error" not in result and self.round < self.job.search.rounds:
            result = self.step()
        return result

    def _round(self) -> tuple[Measurement, Measurement]:
        """(this plan's measurement, the teacher's)."""
        # Here and not in the constructor, so that a learner that fails at it gives a result with the reason.
        self._prepare()
        assert self.reference is not None
        task, search, steps = self.job.task, self.job.search, self.job.search.finetune_steps
        torch.manual_seed(self.job.seed)  # for models with random layers of their own
        job, plan = self.job.for_plan(self.plan)
        if self.round == 1:
            self.model = copy.deepcopy(self.teacher)
            self.hook = self.learner.compress(self.model, plan, job.settings, self._cache(job), steps)
            self.macs = total_macs(self.model, example_input(task, self.device))
        if steps:
            hook, done = self.hook, (self.round - 1) * steps
            fit(
                self.model,
                task,
                halved(job.training) if self.halved else job.training,
                seed=job.seed + self.round,
                precision=self.precision,
                teacher=self.teacher,
                distill=job.distill,
                # Later rounds go on counting, so that a schedule that has ended does not start again.
                hook=hook and (lambda step: hook(done + step)),
                steps=steps,
            )
        reestimate_batch_norm(self.model, task, search.bn_images, self.precision)
        measured = measure(self.model, task, self.validation, self.precision, self.macs, self.soft_labels)
        if job.objective.name not in objective.NEEDS_LATENCY:
            return measured, self.reference
        own, teacher = self._latencies()
        return replace(measured, latency_ms=own), replace(self.reference, latency_ms=teacher)

    def _latencies(self) -> tuple[float, float]:
        """Milliseconds of the plan's model and of the teacher, timed in turns; once for each architecture, so that
        equal models have equal scores."""
        architecture = repr(self.model)  # layers with their sizes and strides
        if architecture not in self.latencies:
            timed = self._litert_ms if self.job.search.latency == "litert" else self._torch_ms
            own, teacher = timed()
            self.latencies[architecture] = own, teacher
        return self.latencies[architecture]

    def _torch_ms(self) -> list[float]:
        return latencies_ms([self.model, self.teacher], example_input(self.job.task, self.device))

    def _litert_ms(self) -> list[float]:
        """Of .tflite files on one thread. Making one takes seconds, so the teacher's is kept."""
        example = example_input(self.job.task)
        with tempfile.TemporaryDirectory() as folder:
            own, teacher = (Path(folder) / f"{name}.tflite" for name in ("own", "teacher"))
            if self.teacher_file is None:
                convert.export(self.teacher, example, teacher)
                self.teacher_file = teacher.read_bytes()
            teacher.write_bytes(self.teacher_file)
            convert.export(self.model, example, own)
            return bench.latency_ms([own, teacher])

    def _prepare(self) -> None:
        if self.reference is None:
            outputs = outputs_of(self.teacher, self.job.task, self.validation, precision=self.precision)
            self.soft_labels = outputs if self.job.task.has_soft_labels else None
            evaluation = judge(self.job.task, self.validation, outputs, self.soft_labels)
            self.reference = measurement_of(self.teacher, self.job.task, evaluation)

    def _cache(self, job: Job) -> Any:
        # Made again where a searched setting of the learner may have changed it.
        if self.cache_of != job.settings:
            self.cache = self.learner.prepare(self.teacher, job.task, job.settings)
            self.cache_of = job.settings
        return self.cache


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. On the CPU PyTorch has no type of its own for that."""
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return True
    return isinstance(error, torch.OutOfMemoryError | MemoryError)


def halved(training: Training) -> Training:
    """The same training with half the batch, of at least one sample."""
    return training.model_copy(update={"batch_size": max(1, training.batch_size // 2)})
