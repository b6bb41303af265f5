"""A whole search in one process and without Ray, as benchmarks compare searchers and plans by."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any


def search(learner: Any, job: Any, searcher: Any) -> tuple[Any, float]:
    """Run the searcher to its end. Returns (the scorer, seconds of scoring)."""
    import torch

    from pfray.scoring import Scorer

    scorer, scoring = Scorer(learner, job, torch.device("cpu")), 0.0
    while isinstance(entry := searcher.suggest("trial"), dict):
        begun = time.perf_counter()
        result = scorer.score(entry["plan"])
        scoring += time.perf_counter() - begun
        measured = {f"measurement/{key}": value for key, value in result.get("measurement", {}).items()}
        searcher.on_trial_complete("trial", {**result, **measured})
    return scorer, scoring


def choose(learner: Any, job: Any, searcher: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(record of the best trial, what it measured), as ``trials.choose`` does: rivals on all validation images."""
    import torch

    from pfray.scoring import Scorer

    every = replace(job, search=job.search.model_copy(update={"validation_images": None}))
    again = Scorer(learner, every, torch.device("cpu"))
    rivals = searcher.rivals(job.search.rescore)
    results = [again.score(record["plan"]) for record in rivals]
    best = max(range(len(rivals)), key=lambda i: results[i]["score"])
    return rivals[best], results[best]
