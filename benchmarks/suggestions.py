"""Time of a suggestion of each searcher with 10,000 finished trials: its own time between two trials of the search.

Measured in CPU seconds, so that other load does not count: ``ask`` with its surroundings (``suggest``), learning from
the result (``on_trial_complete``), and the part of that for saving the state. Only one process of a search does this,
so its inverse bounds the trials per second of the searcher on any cluster.

The space has 30 knobs as in gp_suggest, for policy_gradient knobs to keep or to remove. The 10,000 are random plans
on a smooth landscape with noise. Agents are told of them without training on each, which would take an hour; they are
trained on the measured suggestions.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest import mock

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parser import make_parser
from benchmarks.result import close

if TYPE_CHECKING:
    from pfray.search.base import PlanSearcher
    from pfray.space import CompressionSpace

NAME = "suggestions"
# A trial of the quickest learner takes half a second, and a searcher should serve as many at once as a machine has.
GOAL = "<= 0.5"
SEARCHERS = ("random", "tpe", "gp", "critic", "ddpg", "policy_gradient")


def make_space(knobs: int, choices: bool) -> tuple[CompressionSpace, dict[str, float]]:
    """A space of ``knobs`` sparsities, or of layers to keep or to remove, and its limits."""
    import numpy as np

    from pfray.space import CompressionSpace, Knob

    sizes = np.geomspace(500, 50_000, knobs)
    facts = [{"params": float(size), "macs": float(size), "kernel": 3.0} for size in sizes]
    if choices:
        made = [Knob(f"layer{i}", 0, 1, choices=(0, 1), facts=facts[i]) for i in range(knobs)]
        space = CompressionSpace(tuple(made), lambda values: {"params": float(values @ sizes)})
        return space, {"params": sizes.sum() / 2}
    made = [Knob(f"layer{i}", 0.98, 0.0, scale="log_density", facts=facts[i]) for i in range(knobs)]
    space = CompressionSpace(tuple(made), lambda values: {"sparsity": float(values @ sizes / sizes.sum())})
    return space, {"sparsity": 0.9}


def seconds_each(name: str, knobs: int, observations: int, repeats: int, folder: Path) -> dict[str, list[float]]:
    """Processor seconds of each ``suggest``, of each ``on_trial_complete``, and of ``save_state`` in the latter."""
    import numpy as np

    from pfray.config.registry import find_class
    from pfray.search.base import PlanSearcher

    found: type[PlanSearcher] = find_class("search", name, PlanSearcher)
    space, limits = make_space(knobs, choices=name == "policy_gradient")
    rng = np.random.default_rng(1)
    settings = found.settings_type()
    # Learning from each would take an hour, and is not what is measured.
    idle = {field: 0 for field in ("updates", "steps") if hasattr(settings, field)}
    searcher = found(
        space, limits, dataclasses.replace(settings, **idle), trials=observations + repeats + 1, folder=folder
    )
    best = searcher.center + 0.1 * rng.standard_normal(knobs)

    def score(plan: dict[str, Any]) -> float:
        return 1.0 - float(((space.encode(plan) - best) ** 2).sum()) + 0.01 * rng.standard_normal()

    for number in range(observations):
        plan = space.fit_to_target(space.decode(searcher.center + 0.1 * rng.standard_normal(knobs)), limits)
        # As ``on_trial_complete`` would, but for the file.
        searcher._learn({
            "trial": number, "origin": "random", "plan": plan, "score": score(plan), "standard_error": 0.01,
            "cost": space.costs(plan), "measurement": {"accuracy": 0.9, "loss": 0.3}, "seconds": 1.0,
            "finished_at": 1.7e9 + number, "rounds": 1, "error": None,
        })  # fmt: skip
    searcher.asked, searcher.settings = observations, settings
    spent: dict[str, list[float]] = {"suggest": [], "complete": [], "save": []}
    save = found.save_state

    def timed(self: PlanSearcher) -> None:
        began = time.process_time()
        save(self)
        spent["save"].append(time.process_time() - began)

    with mock.patch.object(found, "save_state", timed):
        for number in range(repeats):
            began = time.process_time()
            entry = searcher.suggest(str(number))
            spent["suggest"].append(time.process_time() - began)
            assert isinstance(entry, dict), entry
            told = {"score": score(entry["plan"]), "seconds": 1.0, "finished_at": time.time(), "training_iteration": 1}
            began = time.process_time()
            searcher.on_trial_complete(str(number), told)
            spent["complete"].append(time.process_time() - began)
    return spent


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    known = f"{options.knobs} knobs, {options.observations} trials known"
    print(f"{known}; processor seconds, medians of {options.repeats}")
    print("| searcher | suggest | learn and write | of that, the state | trials a second at most |")
    print("|---|---|---|---|---|", flush=True)
    worst = 0.0
    for name in options.searchers:
        with tempfile.TemporaryDirectory(prefix="pfray-bench-") as folder:
            spent = seconds_each(name, options.knobs, options.observations, options.repeats, Path(folder))
        suggest, complete, save = (median(spent[key] or [0.0]) for key in ("suggest", "complete", "save"))
        each = suggest + complete
        worst = max(worst, each)
        print(f"| {name} | {suggest:.4f} | {complete:.4f} | {save:.4f} | {1 / each:.1f} |", flush=True)
    close(NAME, worst, f"processor seconds a suggestion, {known}, slowest searcher", GOAL)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(NAME, "Measure what a suggestion costs each searcher when many trials are known.")
    parser.add_argument("--searchers", nargs="+", choices=SEARCHERS, default=SEARCHERS, help="which")
    parser.add_argument("--knobs", type=int, default=30, help="knobs of the space")
    parser.add_argument("--observations", type=int, default=10_000, help="trials told before")
    parser.add_argument("--repeats", type=int, default=10, help="suggestions measured")
    return parser


if __name__ == "__main__":
    sys.exit(main())
