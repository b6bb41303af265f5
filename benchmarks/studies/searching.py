"""A whole search in one process without Ray, for benchmarks that compare searchers and plans."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.sparse_resnet import Job, job


def job_with(model: str, name: str, **settings: Any) -> Job:
    """The job of a trial of ``model`` by the learner ``name`` with these settings."""
    from pfray.config.registry import find_class
    from pfray.learner.base import Algorithm

    algorithm: Any = find_class("learner", name, Algorithm)
    work = job(model)
    recipe = replace(work.recipe, algorithm=algorithm, settings=algorithm.settings_type(**settings))
    return replace(work, recipe=recipe)


def teacher_accuracy(model: str) -> float:
    """On the test split."""
    from pfray.measure.evaluation import evaluate

    work = job(model)
    return evaluate(work.teacher, work.task, work.task.test).accuracy


def searched_plan(
    name: str,
    job: Job,
    space: Any,
    limits: Mapping[str, float],
    first: tuple[tuple[str, dict[str, float]], ...],
    trials: int,
    seed: int,
) -> dict[str, float]:
    """The plan that the searcher ``name`` chooses with its defaults. first: the plans that it tries first."""
    from pfray.config.registry import find_class
    from pfray.search.base import PlanSearcher

    found: Any = find_class("search", name, PlanSearcher)
    searcher = found(space, limits, found.settings_type(), seed=seed, trials=trials, first_plans=first)
    search(job, searcher)
    return choose(job, searcher)[0]["plan"]


def search(job: Job, searcher: Any) -> tuple[Any, float]:
    """Run the searcher to its end. Returns (the scorer, seconds of scoring)."""
    scorer = job.scorer()
    return scorer, run_search(scorer, searcher)


def run_search(scorer: Any, searcher: Any) -> float:
    """Run the searcher to its end, with what ``scorer.score`` gives for each plan. Returns the seconds of scoring."""
    scoring = 0.0
    while isinstance(entry := searcher.suggest("trial"), dict):
        begun = time.perf_counter()
        result = scorer.score(entry["plan"])
        scoring += time.perf_counter() - begun
        measured = {f"measurement/{key}": value for key, value in result.get("measurement", {}).items()}
        searcher.on_trial_complete("trial", {**result, **measured})
    return scoring


def choose(job: Job, searcher: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(record of the best trial, what it measured), as ``trials.choose`` does: rivals on all validation images."""
    from pfray.config.sections import Search

    again = job.scorer(validation_images=None)
    rivals = searcher.finalists(Search().rescore)
    results = [again.score(record["plan"]) for record in rivals]
    best = max(range(len(rivals)), key=lambda i: results[i]["score"])
    return rivals[best], results[best]
