"""Summary of a run: everything that its report needs, and a check of its goals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pfray.config.schema import Experiment
from pfray.errors import GoalMissed
from pfray.learner.pipeline import Pipeline
from pfray.measure.cost import total_macs
from pfray.reporting.goals import missed_goals
from pfray.reporting.metric import PrintedMetric
from pfray.reporting.observers import Observers
from pfray.reporting.remarks import headline, remarks, time_text
from pfray.reporting.summary import Summary, absolute_limits
from pfray.storage.run_folder import RunFolder
from pfray.task import example_input
from pfray.workflow.results import Results
from pfray.workflow.search import SearchResult
from pfray.workflow.setup import LoadedRun
from pfray.workflow.target import costs_as_it_is


def make_summary(
    experiment: Experiment,
    loaded: LoadedRun,
    found: SearchResult,
    results: Results,
    seconds: dict[str, float],
    own_seconds: Mapping[str, float],
) -> Summary:
    """The summary of a finished run. seconds: of each stage, all attempts added up. own_seconds: of this attempt."""
    choice, exported, task = found.choice, results.exported, loaded.task
    tested = {name: measurement.to_dict() for name, measurement in results.measured.items()}
    if exported is not None:
        # Times of files with other weights, as shares of the teacher's; the result's own file is timed itself.
        for name, timed in found.timed.items():
            if tested[name]["latency_ms"] is None:
                tested[name]["latency_ms"] = timed.share * exported["teacher_latency_ms"]
        for name, other in found.shared.items():
            tested[name]["latency_ms"] = tested[other]["latency_ms"]
    return Summary(
        experiment=experiment.name,
        learner=experiment.learner.title,
        searcher=experiment.search.name,
        seed=experiment.seed,
        measured_on="validation" if task.test is task.validation else "test",
        objective=loaded.objective.name,
        target=experiment.target.model_dump(exclude_none=True),
        limits=absolute_limits(experiment.target.costs(), loaded.limits, exported),
        teacher=tested["teacher"],
        uniform=tested.get("uniform"),
        allocate=tested.get("allocate"),
        compressed=tested["compressed"],
        exported=exported,
        metric=PrintedMetric(task.metric_name, task.higher_is_better, task.is_share),
        costs=_costs(loaded, found, tested),
        shared=found.shared,
        plan=choice.plan,
        uniform_plan=found.uniform,
        choice={**choice.to_dict(), "rounding": _rounding(loaded), "trained": experiment.finetune.epochs > 0},
        trials={**found.trials, "best": choice.trial},
        seconds=seconds,
        own_seconds=dict(own_seconds),
    )


def _rounding(loaded: LoadedRun) -> dict[str, float]:
    """Value of the learner's setting that rounds counts, by the setting's path; empty if nothing is rounded."""
    components = loaded.components
    learners = [("learner", components.learner, components.learner_settings)]
    if issubclass(components.learner, Pipeline):
        learners = [(f"learner.{s.name}", s.algorithm, s.settings) for s in components.learner_settings.steps]
    found = {f"{at}.{cls.rounding_setting}": getattr(own, cls.rounding_setting, 1) for at, cls, own in learners}
    return {path: value for path, value in found.items() if value > 1}


def _costs(
    loaded: LoadedRun, found: SearchResult, tested: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Exact costs of each model, by unit of a target. A latency is measured, and missing where it was not."""
    macs = total_macs(loaded.model, example_input(loaded.task))
    costs = {"teacher": costs_as_it_is(loaded.space, loaded.model, macs)}
    costs |= {name: loaded.space.costs(plan) for name, plan in found.plans.items()}
    for name, own in costs.items():
        own.pop("latency_ms", None)
        if (latency := tested[name]["latency_ms"]) is not None:
            own["latency_ms"] = latency
    return costs


def check_goals(summary: Summary) -> None:
    """Raise GoalMissed if a complete run misses a goal of its target."""
    if missed := missed_goals(summary):
        raise GoalMissed("\n".join(goal.error() for goal in missed))


def tell_result(summary: Summary, run: RunFolder, observers: Observers) -> None:
    """Note the headline, the remarks and the places of the files."""
    observers.note("")
    observers.note(headline(summary))
    for remark in remarks(summary):
        observers.note(f"note: {remark}")
    observers.note(f"time: {time_text(summary).rstrip('.')}")
    observers.note(f"files: {run.title}")
    observers.note(f"report: {run.report}")
