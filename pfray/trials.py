"""Run a search's trials through Ray Tune, one plan a trial, on actors that are reused."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler

from pfray.cluster import parallel_trials
from pfray.config import Resources, Search
from pfray.errors import SearchFailed
from pfray.events import Events
from pfray.learner import Job, Learner
from pfray.progress import Progress, Stage
from pfray.search.base import PlanSearcher

# A trial whose worker dies is run again this many times; one that raises is a result, and is not.
WORKER_RETRIES = 2


def run_trials(
    learner: type[Learner],
    job: Job,
    searcher: PlanSearcher,
    search: Search,
    resources: Resources,
    folder: Path,
    progress: Progress,
    events: Events,
) -> None:
    """Run the plans that ``searcher`` still wants, and tell it each result."""
    # Per-trial loggers would cost more than most trials, and Tune's own Ctrl-C handling ends a search silently.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # What a killed search loses of Tune's own bookkeeping does not matter: the searcher keeps the results.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "60")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    share = resources.trial
    trainable = tune.with_resources(tune.with_parameters(learner, job=job), {"cpu": share.cpu, "gpu": share.gpu})
    scheduler = None
    if search.scheduler == "asha":
        scheduler = AsyncHyperBandScheduler(time_attr="training_iteration", max_t=search.rounds, grace_period=1)
    with progress.stage("search", total=search.trials) as stage:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=search.trials - len(searcher.records),
                max_concurrent_trials=resources.parallel or parallel_trials(resources),
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=WORKER_RETRIES),
                # A trial is cheap to run again, and a checkpoint of it would cost more than it.
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                callbacks=[_ShowProgress(searcher, stage, events)],
            ),
        )
        tuner.fit()
    if searcher.failure is not None:
        raise searcher.failure


def best_trial(searcher: PlanSearcher) -> dict[str, Any]:
    """The record of the best trial. Raises SearchFailed when none gave a usable score."""
    best = searcher.best()
    if best is None:
        errors = [record["error"] for record in searcher.records]
        raise SearchFailed(
            f"all {len(errors)} trials failed; the first error: {errors[0] if errors else 'none'}. "
            "Remedy: see search/trials.jsonl in the run folder, mend the cause, and run again with --force"
        )
    return best


class _ShowProgress(Callback):
    def __init__(self, searcher: PlanSearcher, stage: Stage, events: Events) -> None:
        self.searcher, self.stage, self.events = searcher, stage, events

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        best = self.searcher.best()
        failed = sum(record["error"] is not None for record in self.searcher.records)
        note = f"best {best['score']:.4f} ({best['origin']})" if best else "no score yet"
        if self.searcher.records:
            self.events.trial(self.searcher.records[-1], best["score"] if best else None)
        self.stage.update(len(self.searcher.records), note + (f", {failed} failed" if failed else ""))

    on_trial_error = on_trial_complete

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore of its own, which is never used; a live display cannot be pickled.
        return {}


def _trial_name(trial: Trial) -> str:
    return f"trial_{trial.config['trial']:05d}"
