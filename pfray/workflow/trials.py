"""Trials of a search through Ray Tune, one plan each, on reused actors."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback as TuneCallback
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler

from pfray.cluster.ray_cluster import parallel_trials
from pfray.config.sections import Resources
from pfray.data._workers import for_trials
from pfray.errors import SearchFailed
from pfray.learner.scoring import TrialSpec
from pfray.learner.trainable import Learner
from pfray.reporting.metric import PrintedMetric
from pfray.reporting.observers import Observers, SearchState
from pfray.search.base import PlanSearcher
from pfray.space import Knob, Plan
from pfray.storage.run_folder import RunFolder
from pfray.task import SPLITS, Split

# Times that Tune repeats a trial whose worker died; the searcher may suggest it again afterwards. A trial that raises
# an error is a result, and is not repeated.
WORKER_RETRIES = 2
# Training samples that a trial has at least: learners of pfray read as many without a setting.
CALIBRATION = 1000


def run_trials(
    spec: TrialSpec,
    searcher: PlanSearcher,
    resources: Resources,
    folder: Path,
    observers: Observers,
    scheduler: str = "none",
) -> None:
    """Run the plans that ``searcher`` still wants, and tell it each result.

    scheduler: ``asha`` stops the worse trials after each of their rounds.
    folder: for Tune's own record; the stage has its name. Raises the error that prevented the writing of a result.
    """
    stage = folder.name
    # Per-trial loggers would cost more than most trials, and Tune's own Ctrl-C handling ends a search silently.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Tune's own records may be lost in a kill, because the searcher keeps the results.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "60")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    share = resources.trial
    spec = in_memory(spec, observers, searcher.space.knobs)
    # A reference within a list, which Tune hands on as it is: the worker's own code is to fetch it.
    bound = tune.with_parameters(Learner, spec=[ray.put(spec)])
    trainable = tune.with_resources(bound, {"cpu": share.cpu, "gpu": share.gpu})
    # The actors' name on Ray's dashboard.
    trainable.__name__ = spec.recipe.algorithm.__name__
    trainable.__qualname__ = spec.recipe.algorithm.__qualname__
    rounds, asha = spec.scoring.rounds, None
    if scheduler == "asha":
        asha = AsyncHyperBandScheduler(time_attr="training_iteration", max_t=rounds, grace_period=1)
    with observers.stage(stage, total=searcher.trials):
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                search_alg=searcher,
                scheduler=asha,
                num_samples=-1,  # the searcher knows when it is done
                max_concurrent_trials=resources.parallel or parallel_trials(share.cpu, share.gpu),
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=WORKER_RETRIES),
                # A trial is cheap to repeat, and its checkpoint would cost more.
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                callbacks=[_TellObservers(searcher, stage, partial(_score_text, spec), observers)],
            ),
        )
        tuner.fit()
    if searcher.failure is not None:
        raise searcher.failure
    if searcher.gave_up():
        observers.note(f"note: {_why_given_up(searcher, partial(_score_text, spec))}")
    elif searcher.no_plans_left:
        observers.note(f"note: {_why_complete(stage, len(searcher.records), searcher.trials)}")


def _why_given_up(searcher: PlanSearcher, score_text: Callable[[float], str]) -> str:
    """Why a search ended before its budget."""
    first = next(record for record in searcher.records if record["trial"] == 0)
    return (
        f"the search ended after {len(searcher.records)} of {searcher.trials} trials: none scored better than "
        f"{first['origin']} ({score_text(first['score'])}) by more than its standard error "
        f"({first['standard_error']:.2g}), so it is not expected to gain, and {first['origin']} is retrained. "
        "search.patience=1 tries all"
    )


def _why_complete(stage: str, done: int, trials: int) -> str:
    """Why a search without plans left needs no more trials."""
    if done == 1:
        return f"{stage} is complete with 1 of {trials} trials: only one plan meets the target, so it is the best"
    return f"{stage} is complete with {done} of {trials} trials: no other plan was found that meets the target"


def in_memory(spec: TrialSpec, observers: Observers, knobs: Sequence[Knob] = ()) -> TrialSpec:
    """What trials are sent: of data that are read batch by batch the samples that they use, so that neither the other
    samples nor their names travel. knobs: of the search; a setting among them may take any value of its range."""
    task, scoring, training = spec.context.task, spec.scoring, spec.recipe.training
    if all(isinstance(getattr(task, name), Split) for name in SPLITS):
        return spec
    highest = {knob.name: round(knob.full) for knob in knobs if knob.name in spec.recipe.searched}
    searched = [count for name, count in highest.items() if name.endswith("images")]
    asked = max(CALIBRATION, scoring.bn_images, *images_read(spec.recipe.settings), *searched)
    batch_size = highest.get("finetune.batch_size", training.batch_size)
    finetuned = scoring.rounds * scoring.finetune_steps * batch_size
    with observers.stage("read samples for trials"):
        sent = for_trials(task, asked, finetuned, scoring.validation_images)
    return replace(spec, context=replace(spec.context, task=sent))


def images_read(settings: Any) -> list[int]:
    """Values of all settings whose names end in ``images``, also of a pipeline's learners."""
    if isinstance(settings, tuple | list):
        return [count for each in settings for count in images_read(each)]
    if not is_dataclass(settings):
        return []
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    own = [value for name, value in values.items() if name.endswith("images") and isinstance(value, int)]
    return [*own, *(count for value in values.values() for count in images_read(value))]


@dataclass(frozen=True)
class Choice:
    """The chosen trial. rescored: it and its rivals, measured on all validation images, the best first.

    accuracy: the metric that the trial was measured with. within_error: number of plans whose score is within one
    standard error of the best.
    all_images: True if ``score`` is from all validation images. moved: ``further`` or ``less`` if the plan was
    compressed so after its trial, to use up a latency limit. gave_up: True if the search ended without gain, and the
    plan is its first.
    """

    trial: int
    origin: str
    plan: Plan
    score: float
    standard_error: float | None
    accuracy: float | None
    within_error: int
    all_images: bool
    rescored: list[dict[str, Any]]
    moved: str = ""
    gave_up: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the summary, without the plan."""
        return {key: value for key, value in asdict(self).items() if key != "plan"}


def choose(
    spec: TrialSpec, searcher: PlanSearcher, rescore: int, resources: Resources, run: RunFolder, observers: Observers
) -> Choice:
    """The best trial, after the ``rescore`` best ones and the first were measured again on all validation images.

    Trials already measured on all of them are not repeated. Raises SearchFailed if no trial gave a usable score.
    """
    ranking = searcher.ranking()
    if not ranking:
        errors = [record["error"] for record in searcher.records]
        raise SearchFailed(
            f"all {len(errors)} trials failed; the first error: {errors[0] if errors else 'none'}. "
            f"Remedy: see {run.trials.relative_to(run.path)} in the run folder, mend the cause, and run again with "
            "--force"
        )
    if searcher.gave_up():
        first = _choice([record for record in ranking if record["trial"] == 0], False, [])
        return replace(first, gave_up=True)
    used = spec.scoring.validation_images
    all_images = used is None or used >= len(spec.context.task.validation)
    if all_images or not rescore or len(ranking) == 1:
        return _choice(ranking, all_images, [])
    rivals = searcher.finalists(rescore)
    whole = replace(spec, scoring=replace(spec.scoring, validation_images=None))
    run.rescore.mkdir(exist_ok=True)
    again = _Rescoring(
        searcher.space, searcher.limits, None, trials=len(rivals), folder=run.rescore,
        first_plans=tuple((record["origin"], record["plan"]) for record in rivals),
    )  # fmt: skip
    if (note := again.resume()) is not None:
        observers.note(f"note: {note}")
    if not again.finished():
        run_trials(whole, again, resources, run.tune(run.rescore.name), observers)
    if again.records and not again.ranking():
        errors = [record["error"].partition(". Remedy: ")[0] for record in again.records if record["error"]]
        observers.note(
            f"note: no plan could be measured again; the first error: {errors[0] if errors else 'none'}. The choice is "
            "the search's own"
        )
    # Trials keep their numbers from the search.
    rescored = [{**record, "trial": rivals[record["trial"]]["trial"]} for record in again.ranking()]
    return _choice(rescored, True, rescored) if rescored else _choice(ranking, False, [])


def _choice(ranking: list[dict[str, Any]], all_images: bool, rescored: list[dict[str, Any]]) -> Choice:
    best = ranking[0]
    error = best["standard_error"] or 0.0
    close = sum(record["score"] >= best["score"] - error for record in ranking)
    kept = [{key: record[key] for key in ("trial", "origin", "score", "standard_error")} for record in rescored]
    measured = (best["measurement"] or {}).get("accuracy")
    return Choice(
        best["trial"], best["origin"], best["plan"], best["score"], best["standard_error"], measured, close, all_images,
        kept,
    )  # fmt: skip


class _Rescoring(PlanSearcher):
    """The given plans, measured again."""

    open_ended = False
    given = (
        "the search would measure again. Remedy: remove the folder rescore, and what was trained for the plan that was "
        "chosen by it (the folder training); or --force to begin anew"
    )


class _TellObservers(TuneCallback):
    def __init__(
        self, searcher: PlanSearcher, stage: str, score_text: Callable[[float], str], observers: Observers
    ) -> None:
        self.searcher, self.stage, self.score_text, self.observers = searcher, stage, score_text, observers
        self.seen = len(searcher.records)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if len(self.searcher.records) == self.seen:
            return  # the worker died, and the trial is suggested again
        self.seen = len(self.searcher.records)
        best = self.searcher.best()
        words = "" if best is None else self.score_text(best["score"])
        self.observers.trial_finished(SearchState(self.stage, self.searcher.records, best, words))

    on_trial_error = on_trial_complete

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that is never used, and a live display cannot be pickled.
        return {}


def _score_text(spec: TrialSpec, score: float) -> str:
    """A score with its name; the objective ``accuracy`` is the task's own metric."""
    name, task = spec.scoring.objective.name, spec.context.task
    if name != "accuracy":
        return f"{name} {score:.4f}"
    metric = PrintedMetric(task.metric_name, task.higher_is_better, task.is_share)
    return f"{metric.name} {metric.text(score, 2)}"


def _trial_name(trial: Trial) -> str:
    return f"trial_{trial.config['trial']:05d}"
