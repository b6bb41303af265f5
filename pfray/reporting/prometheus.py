"""Ray metrics of a run, for a cluster's Prometheus and dashboard.

All are gauges of the driver with the tag ``experiment``. ``docs/guide.md`` lists them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.util.metrics import Gauge

from pfray.reporting.observers import Observer, SearchState

# Finished trials for the rate: enough to smooth it, few enough to show a change.
RECENT = 20


class Prometheus(Observer):
    """experiment: name of the run. This process must be connected to Ray."""

    def __init__(self, experiment: str) -> None:
        tags = {"experiment": experiment}

        def gauge(name: str, description: str, *keys: str) -> Gauge:
            return Gauge(f"pfray_{name}", description, ("experiment", *keys)).set_default_tags(tags)

        self.done = gauge("trials_done", "Trials of the search that gave a score.")
        self.failed = gauge("trials_failed", "Trials of the search that failed.")
        self.best = gauge("best_score", "The best score of the search so far.")
        self.rate = gauge("candidates_per_minute", f"Trials finished in a minute, of the last {RECENT}.")
        self.stage = gauge("stage", "1 for the stage that the run is in, 0 for those it was in.", "stage")

    def trial_finished(self, search: SearchState) -> None:
        if search.stage != "search":
            return
        self.done.set(len(search.records) - search.failed)
        self.failed.set(search.failed)
        if search.best is not None:
            self.best.set(search.best["score"])
        times = [record["finished_at"] for record in search.records if record["finished_at"] is not None]
        if (rate := per_minute(times[-RECENT:])) is not None:
            self.rate.set(rate)

    def stage_started(self, stage: str, total: int | None) -> None:
        self.stage.set(1.0, {"stage": stage})

    def stage_ended(self, stage: str, seconds: float, failed: bool) -> None:
        self.stage.set(0.0, {"stage": stage})


def per_minute(times: Sequence[float]) -> float | None:
    """Events per minute, from their times in seconds; None for too few events."""
    if len(times) < 2 or max(times) <= min(times):
        return None
    return 60 * (len(times) - 1) / (max(times) - min(times))
