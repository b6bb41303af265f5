"""A run's numbers as Ray metrics: what a cluster's Prometheus collects, and its dashboard shows.

All are gauges of the driver with the tag ``experiment``; ``docs/guide.md`` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray.util.metrics import Gauge

# Finished trials that the rate is taken over: enough to smooth it, few enough to show a change.
RECENT = 20


class Metrics:
    """experiment: the name of the run. Needs a Ray that this process is connected to."""

    def __init__(self, experiment: str) -> None:
        tags = {"experiment": experiment}

        def gauge(name: str, description: str, *keys: str) -> Gauge:
            return Gauge(f"pfray_{name}", description, ("experiment", *keys)).set_default_tags(tags)

        self.done = gauge("trials_done", "Trials of the search that gave a score.")
        self.failed = gauge("trials_failed", "Trials of the search that failed.")
        self.best = gauge("best_score", "The best score of the search so far.")
        self.rate = gauge("candidates_per_minute", f"Trials finished in a minute, of the last {RECENT}.")
        self.stage = gauge("stage", "1 for the stage that the run is in, 0 for those it was in.", "stage")

    def trial(
        self, records: Sequence[Mapping[str, Any]], count: Mapping[str, Any], best: Mapping[str, Any] | None
    ) -> None:
        """What the search knows after another trial: a searcher's ``records``, ``count`` and ``best``."""
        self.done.set(count["finished"])
        self.failed.set(count["failed"])
        if best is not None:
            self.best.set(best["score"])
        times = [record["finished_at"] for record in records if record["finished_at"] is not None]
        if (rate := per_minute(times[-RECENT:])) is not None:
            self.rate.set(rate)

    def enter(self, stage: str, running: bool) -> None:
        """A stage began, or ended."""
        self.stage.set(float(running), {"stage": stage})


def per_minute(times: Sequence[float]) -> float | None:
    """Events in a minute, from their times in seconds; None where there are too few to tell."""
    if len(times) < 2 or max(times) <= min(times):
        return None
    return 60 * (len(times) - 1) / (max(times) - min(times))
