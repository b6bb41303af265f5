"""Trials per minute with 1, 2, 4 and 8 raylets of eight trials each, which sleep instead of compute.

They sleep so that the processors of this one machine, which acts as all machines of the cluster, are no limit. The rest
is the work of a search between trials: Tune's loop, the searcher and the files, all in the one process of the driver.
The measured window begins when all trials run for the first time and ends when the last trial starts.

    rate = trials finished in the window / its length;  ideal = trials at once / their mean length
    busy = seconds that trials slept in the window / (trials at once * length of the window)

The second figure is the driver's CPU time per trial, independent of other load on the machine: its inverse bounds the
trials per second of one search on any cluster.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parser import make_parser
from benchmarks.raylets import cluster
from benchmarks.result import close

NAME = "weak_scaling"
GOAL = ">= 0.9"
DRIVER_GOAL = "<= 0.05"
KNOBS = 30


def window(trials: Sequence[Mapping[str, Any]], parallel: int) -> tuple[float, float]:
    """(time at which all slots were first taken, start of the last trial), seconds since the epoch."""
    starts = sorted(trial["finished_at"] - trial["seconds"] for trial in trials)
    return starts[parallel - 1], starts[-1]


def rates(trials: Sequence[Mapping[str, Any]], parallel: int) -> tuple[float, float]:
    """(trials a minute, share of the slots' time in which a trial slept), in the window."""
    begin, end = window(trials, parallel)
    finished = sum(begin < trial["finished_at"] <= end for trial in trials)
    slept = sum(
        max(0.0, min(end, trial["finished_at"]) - max(begin, trial["finished_at"] - trial["seconds"]))
        for trial in trials
    )
    return 60 * finished / (end - begin), slept / (parallel * (end - begin))


def measure(raylets: int, options: argparse.Namespace) -> tuple[list[dict[str, Any]], float]:
    """(records of the trials, the driver's processor seconds a trial) of one search."""
    import ray

    from benchmarks.sleeping_trial import Sleeping, SleepingSpec
    from benchmarks.suggestions import make_space
    from pfray.config.sections import Resources
    from pfray.reporting.observers import Observers
    from pfray.search.random import Random, Settings
    from pfray.workflow import trials as tuned

    parallel = raylets * options.slots
    trials = parallel * (1 + options.rounds)
    space, limits = make_space(KNOBS, choices=False)
    with tempfile.TemporaryDirectory(prefix="pfray-bench-") as name, cluster(raylets, options.slots) as found:
        folder = Path(name)
        for part in ("search", "workers"):
            (folder / part).mkdir()
        ray.init(address=found.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            searcher = Random(space, limits, Settings(), trials=trials, folder=folder / "search")
            spec: Any = SleepingSpec(options.seconds, parallel, str(folder / "workers"))
            began = time.process_time()
            with patch.object(tuned, "Learner", Sleeping):
                tuned.run_trials(
                    spec, searcher, Resources(parallel=parallel), folder / "tune" / "search", Observers()
                )
            spent = time.process_time() - began
        finally:
            ray.shutdown()
    return searcher.records, spent / trials


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    print(f"trials of {options.seconds:g} s, {options.slots} at once on each raylet, load {os.getloadavg()[0]:.1f}")
    rows, driver = [], 0.0
    for raylets in options.raylets:
        records, driver = measure(raylets, options)
        parallel = raylets * options.slots
        rate, busy = rates(records, parallel)
        ideal = 60 * parallel / (sum(record["seconds"] for record in records) / len(records))
        rows.append((raylets, rate, busy, driver))
        print(f"{raylets} raylets: {rate:.1f} trials a minute of {ideal:.1f}, busy {busy:.3f}", flush=True)
    print("| raylets | trials at once | trials a minute | busy | of the first row's, per raylet | driver's s a trial |")
    print("|---|---|---|---|---|---|")
    first = rows[0]
    for raylets, rate, busy, spent in rows:
        share = rate / raylets / (first[1] / first[0])
        print(f"| {raylets} | {raylets * options.slots} | {rate:.1f} | {busy:.3f} | {share:.3f} | {spent:.4f} |")
    close(f"{NAME}_driver", driver, f"driver's processor seconds a trial, {rows[-1][0]} raylets", DRIVER_GOAL)
    close(NAME, rows[-1][2], f"share of the ideal rate, {rows[-1][0]} raylets", GOAL)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(NAME, "Measure trials a minute with more and more raylets, with trials that sleep.")
    parser.add_argument("--raylets", type=int, nargs="+", default=[1, 2, 4, 8], help="of each search")
    parser.add_argument("--slots", type=int, default=8, help="trials at once on a raylet")
    parser.add_argument("--seconds", type=float, default=10.0, help="mean length of a trial")
    parser.add_argument("--rounds", type=int, default=5, help="trials of each slot after its first")
    return parser


if __name__ == "__main__":
    sys.exit(main())
