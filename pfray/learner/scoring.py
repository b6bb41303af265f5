"""From a plan to a score, once a trial: compress the teacher, fine-tune, measure. Independent of Ray."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from pfray import bench, objective
from pfray.errors import TrainingFailed, first_line
from pfray.export.tflite import convert
from pfray.export.tflite.kept import teacher_file
from pfray.learner.base import Algorithm, Compressed, check_result
from pfray.learner.context import Candidate, Context, Recipe
from pfray.measure.cost import total_macs
from pfray.measure.evaluation import Answers, Measurement, answers_of, judge, measure, measurement_of
from pfray.measure.timing import latencies_ms
from pfray.nn.modes import place
from pfray.objective import Objective
from pfray.space import Plan
from pfray.task import Samples, example_input
from pfray.training.batch_norm import reestimate_batch_norm
from pfray.training.loop import choose_precision, fit
from pfray.training.settings import Training
from pfray.utils.session_folder import scratch_folder
from pfray.utils.user_code import place_of


@dataclass(frozen=True)
class Scoring:
    """Scoring of plans.

    rounds: rounds of a trial, each of ``finetune_steps`` optimizer steps and a measurement.
    bn_images: training images on which batch-norm statistics are re-estimated before a measurement, augmented after
        ``finetune_steps``; 0 for none.
    validation_images: validation images of a measurement; None for all.
    latency: what objective ``ddc`` times, the model in PyTorch or its .tflite file.
    shrink_on_oom: if True, a plan that runs out of memory is tried once more with half the batch.
    """

    objective: Objective = field(default_factory=lambda: Objective("accuracy"))
    rounds: int = 1
    finetune_steps: int = 0
    bn_images: int = 250
    validation_images: int | None = 500
    latency: Literal["torch", "litert"] = "torch"
    shrink_on_oom: bool = False


@dataclass(frozen=True)
class TrialSpec:
    """Inputs of a search's workers."""

    context: Context
    recipe: Recipe
    scoring: Scoring


class Scorer:
    """Scores plans in sequence on ``device``; shared quantities are computed once.

    The images for batch norm and for the score are fixed, so plans are compared on the same ones.
    """

    def __init__(self, context: Context, recipe: Recipe, scoring: Scoring, device: torch.device) -> None:
        self.context, self.recipe, self.scoring, self.device = context, recipe, scoring, device
        self.teacher = place(self.context.teacher, device)
        self.precision = choose_precision(self.teacher, device, context.precision)
        self.reference: Measurement | None = None
        self.soft_labels: list[Answers] | None = None
        self.algorithm: Algorithm | None = None
        self.bound_settings: Any = None
        self.candidate: Candidate | None = None
        self.compressed: Compressed | None = None
        self.latencies: dict[str, tuple[float, float]] = {}

    @cached_property
    def validation(self) -> Samples:
        """The samples of a measurement. Read in the first round, so that a failure becomes a result with its reason."""
        return self.context.task.validation.head(self.scoring.validation_images)

    def begin(self, plan: Plan) -> None:
        """Start on a plan, whose rounds ``step`` does."""
        self.plan, self.round, self.halved = plan, 0, False

    def step(self) -> dict[str, Any]:
        """Result of one round: score, standard_error and measurement. A failure gives the score NaN and ``error``.

        With ``shrink_on_oom`` a plan that runs out of memory restarts once with half the batch; its results then have
        ``halved_batch``.
        """
        self.round += 1
        result, out_of_memory = self._try_round()
        if out_of_memory and self.scoring.shrink_on_oom and not self.halved:
            self.halved, again = True, self.round
            self.compressed = None
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            for self.round in range(1, again + 1):
                result, _ = self._try_round()
                if "error" in result:
                    break
        return {**result, "halved_batch": True} if self.halved else result

    def score(self, plan: Plan) -> dict[str, Any]:
        """Result of the last round of ``plan``."""
        self.begin(plan)
        result: dict[str, Any] = {}
        while "error" not in result and self.round < self.scoring.rounds:
            result = self.step()
        return result

    def _try_round(self) -> tuple[dict[str, Any], bool]:
        """(result, whether memory ran out)."""
        try:
            measured, reference = self._do_round()
            # A model of NaNs still has an accuracy: it always predicts the first class.
            if not math.isfinite(measured.loss):
                raise TrainingFailed(f"the loss on the validation images is {measured.loss}")
            wanted = self.scoring.objective
            return {
                "score": objective.score(wanted, measured, reference),
                "standard_error": objective.standard_error(wanted, measured, reference),
                "measurement": measured.to_dict(),
            }, False
        except Exception as error:
            failure = {"score": float("nan"), "error": f"{type(error).__name__}: {first_line(error)}{place_of(error)}"}
            return failure, is_out_of_memory(error)

    def _do_round(self) -> tuple[Measurement, Measurement]:
        """(measurement of this plan, measurement of the teacher)."""
        # Not in the constructor, so that a failure here becomes a result with its reason.
        reference = self._measure_teacher()
        task, scoring, steps = self.context.task, self.scoring, self.scoring.finetune_steps
        torch.manual_seed(self.context.seed)  # for models with random layers
        if self.round == 1:
            self.compressed = None  # frees the memory of the previous plan
            self.candidate = self.recipe.candidate(self.plan)
            algorithm = self._bound(self.candidate)
            self.compressed = check_result(algorithm, "compress", algorithm.compress(self.candidate.plan, steps))
            self.macs = total_macs(self.compressed.model, example_input(task, self.device))
        assert self.candidate is not None
        assert self.compressed is not None
        model, hook = self.compressed.model, self.compressed.hook
        if steps:
            # Each round ends at a learning rate of 0, so its last weights are settled without an average.
            training = self.candidate.training.model_copy(update={"average": "none"})
            done = (self.round - 1) * steps
            fit(
                model,
                task,
                with_half_batch(training) if self.halved else training,
                seed=self.context.seed + self.round,
                precision=self.precision,
                teacher=self.teacher,
                distill=self.candidate.distill,
                # Steps are counted over all rounds, so that a schedule that has ended does not restart.
                hook=hook and (lambda step: hook(done + step)),
                steps=steps,
            )
        # Weights that were trained on augmented images want the statistics of such images (docs/results.md).
        reestimate_batch_norm(model, task, scoring.bn_images, self.precision, augmented=steps > 0)
        measured = measure(model, task, self.validation, self.precision, self.macs, self.soft_labels)
        if scoring.objective.name not in objective.NEEDS_LATENCY:
            return measured, reference
        own, teacher = self._time()
        return replace(measured, latency_ms=own), replace(reference, latency_ms=teacher)

    def _bound(self, candidate: Candidate) -> Algorithm:
        """The algorithm, bound again only if a searched setting has changed, because its caches depend on settings."""
        if self.algorithm is None or self.bound_settings != candidate.settings:
            self.algorithm = candidate.bind(self.teacher, self.context.task)
            self.bound_settings = candidate.settings
        return self.algorithm

    def _measure_teacher(self) -> Measurement:
        if self.reference is None:
            task = self.context.task
            answers = list(answers_of(self.teacher, task, self.validation, self.precision))
            self.soft_labels = answers if task.has_soft_labels else None
            evaluation = judge(self.teacher, task, answers, self.soft_labels)
            self.reference = measurement_of(self.teacher, task, evaluation)
        return self.reference

    def _time(self) -> tuple[float, float]:
        """(latency of the plan's model, of the teacher) in milliseconds, timed alternately.

        Timed once per architecture, so that equal models have equal scores.
        """
        assert self.compressed is not None
        architecture = repr(self.compressed.model)  # layers with their sizes and strides
        if architecture not in self.latencies:
            models = [self.compressed.model, self.teacher]
            timed = self._time_files if self.scoring.latency == "litert" else self._time_models
            own, teacher = timed(*models)
            self.latencies[architecture] = own, teacher
        return self.latencies[architecture]

    def _time_models(self, *models: torch.nn.Module) -> list[float]:
        return latencies_ms(models, example_input(self.context.task, self.device))

    def _time_files(self, model: torch.nn.Module, teacher: torch.nn.Module) -> list[float]:
        """Latencies of .tflite files in milliseconds, on one thread."""
        example = example_input(self.context.task)
        with scratch_folder() as folder:
            own = Path(folder) / "own.tflite"
            convert.export(model, example, own)
            files = [own, teacher_file(teacher, self.context.task)]
            return bench.latency_ms(files, example=convert.arrays(example))


def is_out_of_memory(error: BaseException) -> bool:
    """True if an allocation failed. On the CPU PyTorch raises a plain RuntimeError for that."""
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return True
    return isinstance(error, torch.OutOfMemoryError | MemoryError)


def with_half_batch(training: Training) -> Training:
    """The same training with half the batch size, at least 1."""
    return training.model_copy(update={"batch_size": max(1, training.batch_size // 2)})
