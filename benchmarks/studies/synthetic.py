"""A synthetic search problem of 24 knobs with free scores, to compare searchers in seconds.

Each seed has its own landscape: layers of 500 to 50,000 weights with a target of 90 % sparsity, and a best plan on that
target. The score is minus a quadratic form of the distance to its positions, with neighboring layers coupled, scaled so
that the best plan has 0 and the uniform plan -1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.studies.searching import run_search
from benchmarks.studies.variants import variant
from benchmarks.studies.workers import Record

KNOBS, LIMITS = 24, {"sparsity": 0.9}
# Standard deviations: of the best plan's positions from the uniform plan's, and of the logarithm of what a distance
# costs; and how strongly a layer's distance counts together with the next one's.
AWAY, UNEVEN, COUPLED = 0.15, 1.0, 0.4


def landscape(seed: int) -> tuple[Any, Callable[[Mapping[str, float]], float], dict[str, float]]:
    """(space, score of a plan, best plan)."""
    from pfray.space import CompressionSpace, Knob

    rng = np.random.default_rng([seed, KNOBS])
    sizes = rng.permutation(np.geomspace(500, 50_000, KNOBS)).round()
    knobs = [Knob(f"layer{i}", 0.98, 0.0, "log_density", facts={"params": size}) for i, size in enumerate(sizes)]
    space = CompressionSpace(tuple(knobs), lambda values: {"sparsity": float(values @ sizes / sizes.sum())})
    uniform = space.uniform(LIMITS)
    away = AWAY * rng.standard_normal(KNOBS)
    best = space.fit_to_target(space.decode(space.encode(uniform) + away), LIMITS)
    positions = space.encode(best)
    weight = np.exp(UNEVEN * rng.standard_normal(KNOBS))

    def loss(plan: Mapping[str, float]) -> float:
        moved = np.sqrt(weight) * (space.encode(dict(plan)) - positions)
        return float(moved @ moved + 2 * COUPLED * moved[:-1] @ moved[1:])

    return space, lambda plan: -loss(plan) / loss(uniform), best


class Scorer:
    def __init__(self, score: Callable[[Mapping[str, float]], float]) -> None:
        self._score = score

    def score(self, plan: Mapping[str, float]) -> dict[str, Any]:
        return {"score": self._score(plan)}


def search(piece: Sequence[Any]) -> Record:
    """piece: (model, searcher, seed, trials, settings). A whole search from the uniform plan."""
    _, name, seed, trials, _ = piece
    space, score, _ = landscape(seed)
    found, settings = variant(name, trials)
    first = (("uniform", space.uniform(LIMITS)),)
    searcher = found(space, LIMITS, settings, seed=seed, trials=trials, first_plans=first)
    started = time.perf_counter()
    run_search(Scorer(score), searcher)
    return {
        "scores": [record["score"] for record in searcher.records],
        "seconds": time.perf_counter() - started,
    }


def table(records: Mapping[str, Sequence[Record]]) -> str:
    """A row for each searcher: the mean over its seeds of the best score, and of the one at half the trials."""
    rows = [["searcher", "seeds", "best score", "lowest .. highest", "at half the trials", "seconds"]]
    rows.append(["---", *["---:"] * 5])
    for name, runs in records.items():
        best = [max(run["scores"]) for run in runs]
        half = np.mean([max(run["scores"][: len(run["scores"]) // 2]) for run in runs])
        seconds = np.mean([run["seconds"] for run in runs])
        spread = f"{min(best):.3f} .. {max(best):.3f}"
        rows.append([name, str(len(runs)), f"{np.mean(best):.3f}", spread, f"{half:.3f}", f"{seconds:.1f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
