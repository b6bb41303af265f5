"""Run a search's trials through Ray Tune, one plan a trial, on actors that are reused."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler

from pfray.cluster.ray_cluster import parallel_trials
from pfray.config.sections import Resources, Search
from pfray.errors import SearchFailed
from pfray.learner.context import Context, Recipe
from pfray.learner.scoring import Scoring
from pfray.learner.trainable import Learner
from pfray.objective import Objective
from pfray.reporting.progress import Progress, Stage
from pfray.reporting.prometheus import Metrics
from pfray.reporting.tensorboard import Events
from pfray.search.base import PlanSearcher
from pfray.space import Plan

# A trial whose worker dies is run again this many times, and then as often as the searcher suggests it again; one that
# raises is a result, and is not.
WORKER_RETRIES = 2


def run_trials(
    context: Context,
    recipe: Recipe,
    objective: Objective,
    searcher: PlanSearcher,
    search: Search,
    resources: Resources,
    folder: Path,
    progress: Progress,
    events: Events | None,
    name: str = "search",
    metrics: Metrics | None = None,
) -> None:
    """Run the plans that ``searcher`` still wants, and tell it each result. name: of the stage."""
    # Per-trial loggers would cost more than most trials, and Tune's own Ctrl-C handling ends a search silently.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # What a killed search loses of Tune's own bookkeeping does not matter: the searcher keeps the results.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "60")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    share = resources.trial
    scoring = Scoring(
        objective, search.rounds, search.finetune_steps, search.bn_images, search.validation_images, search.latency,
        resources.shrink_on_oom,
    )  # fmt: skip
    bound = tune.with_parameters(Learner, context=context, recipe=recipe, scoring=scoring)
    trainable = tune.with_resources(bound, {"cpu": share.cpu, "gpu": share.gpu})
    # What Ray's dashboard calls the actors.
    trainable.__qualname__ = recipe.algorithm.__qualname__
    scheduler = None
    if search.scheduler == "asha":
        scheduler = AsyncHyperBandScheduler(time_attr="training_iteration", max_t=search.rounds, grace_period=1)
    with progress.stage(name, total=searcher.trials) as stage:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,  # the searcher knows when it is done
                max_concurrent_trials=resources.parallel or parallel_trials(resources),
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=f"tune/{name}",
                storage_path=str(folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=WORKER_RETRIES),
                # A trial is cheap to run again, and a checkpoint of it would cost more than it.
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                callbacks=[_ShowProgress(searcher, stage, events, metrics)],
            ),
        )
        tuner.fit()
    if searcher.failure is not None:
        raise searcher.failure
    if searcher.no_plans_left:
        progress.say(f"note: {name} ended after {len(searcher.records)} of {searcher.trials} trials, because no other "
                     "plan was found that meets the target")  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The trial that was chosen. rescored: it and its rivals on all validation images, the best first.

    within_error: how many of the plans scored the same way are no further below the best than its standard error.
    all_images: whether the score is that on all validation images.
    """

    trial: int
    origin: str
    plan: Plan
    score: float
    standard_error: float | None
    within_error: int
    all_images: bool
    rescored: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "plan"}


def choose(
    context: Context,
    recipe: Recipe,
    objective: Objective,
    searcher: PlanSearcher,
    search: Search,
    resources: Resources,
    folder: Path,
    progress: Progress,
) -> Choice:
    """The best trial, once the ``rescore`` best ones and the first were measured again on all validation images.

    Where trials were measured on all of them already, nothing is measured again. Raises SearchFailed when no trial
    gave a usable score.
    """
    ranking = searcher.ranking()
    if not ranking:
        errors = [record["error"] for record in searcher.records]
        raise SearchFailed(
            f"all {len(errors)} trials failed; the first error: {errors[0] if errors else 'none'}. "
            "Remedy: see search/trials.jsonl in the run folder, mend the cause, and run again with --force"
        )
    used = search.validation_images
    all_images = used is None or used >= len(context.task.validation)
    if all_images or not search.rescore or len(ranking) == 1:
        return _choice(ranking, all_images, [])
    rivals = searcher.finalists(search.rescore)
    whole = search.model_copy(update={"validation_images": None, "scheduler": "none"})
    (folder / "rescore").mkdir(exist_ok=True)
    again = _Again(
        searcher.space, searcher.limits, None, trials=len(rivals), folder=folder / "rescore",
        first_plans=tuple((record["origin"], record["plan"]) for record in rivals),
    )  # fmt: skip
    if (note := again.resume()) is not None:
        progress.say(f"note: {note}")
    if not again.finished():
        run_trials(context, recipe, objective, again, whole, resources, folder, progress, None, name="rescore")
    # Their numbers are those of the search.
    rescored = [{**record, "trial": rivals[record["trial"]]["trial"]} for record in again.ranking()]
    return _choice(rescored, True, rescored) if rescored else _choice(ranking, False, [])


def _choice(ranking: list[dict[str, Any]], all_images: bool, rescored: list[dict[str, Any]]) -> Choice:
    best = ranking[0]
    error = best["standard_error"] or 0.0
    close = sum(record["score"] >= best["score"] - error for record in ranking)
    kept = [{key: record[key] for key in ("trial", "origin", "score", "standard_error")} for record in rescored]
    return Choice(
        best["trial"], best["origin"], best["plan"], best["score"], best["standard_error"], close, all_images, kept
    )


class _Again(PlanSearcher):
    """Given plans, and no others."""

    open_ended = False
    given = (
        "the search would measure again. Remedy: remove the folder rescore, and what was trained for the plan that was "
        "chosen by it (the folder training); or --force to begin anew"
    )


class _ShowProgress(Callback):
    def __init__(
        self, searcher: PlanSearcher, stage: Stage, events: Events | None, metrics: Metrics | None
    ) -> None:
        self.searcher, self.stage, self.events, self.metrics = searcher, stage, events, metrics
        self.seen = len(searcher.records)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if len(self.searcher.records) == self.seen:
            return  # its worker died, and it is suggested again
        self.seen = len(self.searcher.records)
        best, count = self.searcher.best(), self.searcher.count()
        failed = count["failed"]
        note = f"best {best['score']:.4f} ({best['origin']})" if best else "no score yet"
        if self.events is not None:
            self.events.trial(self.searcher.records[-1], best["score"] if best else None)
        if self.metrics is not None:
            self.metrics.trial(self.searcher.records, count, best)
        self.stage.update(len(self.searcher.records), note + (f", {failed} failed" if failed else ""))

    on_trial_error = on_trial_complete

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore of its own, which is never used; a live display cannot be pickled.
        return {}


def _trial_name(trial: Trial) -> str:
    return f"trial_{trial.config['trial']:05d}"
