"""Time of a suggestion of the Gaussian-process searcher: 30 knobs, 100 finished trials, one core.

The scores come from a smooth landscape with a little noise, so that the fit is realistic. Every suggestion is followed
by its score, so the periodic fits of the length scale, the variance and the noise are included. For comparison, once:
the library's own ``suggest`` on the same observations with its default process and maximization.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

# Before numpy is imported: a trial has one core, and so has this.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parser import make_parser
from benchmarks.result import close

if TYPE_CHECKING:
    import numpy as np

    from pfray.search.gp import GP
    from pfray.space import Plan

NAME = "gp_suggest"
GOAL = "<= 0.3"
SPARSITY = 0.9


def make_searcher(knobs: int, trials: int) -> GP:
    import numpy as np

    from pfray.search.gp import GP, Settings
    from pfray.space import CompressionSpace, Knob

    sizes = np.geomspace(500, 50_000, knobs)
    space = CompressionSpace(
        tuple(Knob(f"layer{i}", compressed=0.98, full=0.0, scale="log_density") for i in range(knobs)),
        lambda values: {"sparsity": float(values @ sizes / sizes.sum())},
    )
    return GP(space, {"sparsity": SPARSITY}, Settings(), seed=0, trials=trials)


def score(searcher: GP, plan: Plan, best: np.ndarray, rng: np.random.Generator) -> float:
    return 1.0 - float(((searcher.space.encode(plan) - best) ** 2).sum()) + 0.01 * rng.standard_normal()


def seconds_each(searcher: GP, observations: int, repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` suggestions after ``observations`` trials."""
    import numpy as np

    rng = np.random.default_rng(1)
    best = searcher.center + 0.1 * rng.standard_normal(len(searcher.space))
    # Only what is told matters here, not how it was found; random plans are quicker.
    searcher.warm_start(
        [
            (plan, score(searcher, plan, best, rng))
            for plan in (
                searcher.space.fit_to_target(
                    searcher.space.decode(searcher.center + 0.1 * rng.standard_normal(len(best))), searcher.limits
                )
                for _ in range(observations)
            )
        ]
    )
    searcher.queue.clear()
    spent = []
    for number in range(repeats):
        start = time.perf_counter()
        entry = searcher.suggest(str(number))
        spent.append(time.perf_counter() - start)
        assert entry is not None
        searcher.on_trial_complete(str(number), {"score": score(searcher, entry["plan"], best, rng)})
    return spent


def library_seconds(searcher: GP, observations: int) -> float:
    """Seconds of one ``suggest`` of the library with all its defaults, on the searcher's first observations."""
    from bayes_opt import BayesianOptimization

    optimizer = BayesianOptimization(
        None, dict.fromkeys(searcher.space.names, (0.0, 1.0)), random_state=0, verbose=0, allow_duplicate_points=True
    )
    for plan, value in searcher.history[:observations]:
        assert value is not None
        optimizer.space.register(searcher.space.encode(plan), value)
    start = time.perf_counter()
    optimizer.suggest()
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    searcher = make_searcher(options.knobs, options.repeats + 1)
    spent = seconds_each(searcher, options.observations, options.repeats)
    print(f"{options.knobs} knobs, {options.observations} observations, 1-minute load {os.getloadavg()[0]:.1f}")
    print(f"{options.repeats} suggestions: {min(spent):.3f} .. {max(spent):.3f} s")
    print(f"the library's default suggest: {library_seconds(searcher, options.observations):.3f} s")
    print(f"median {median(spent):.3f} s")
    close(NAME, max(spent), f"seconds a suggestion, {options.knobs} knobs, slowest of {options.repeats}", GOAL)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(NAME, "Measure what a suggestion of the Gaussian-process searcher costs.")
    parser.add_argument("--knobs", type=int, default=30, help="knobs of the space")
    parser.add_argument("--observations", type=int, default=100, help="trials told before")
    parser.add_argument("--repeats", type=int, default=10, help="suggestions measured")
    return parser


if __name__ == "__main__":
    sys.exit(main())
