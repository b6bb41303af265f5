"""Summary of a run: everything that its report needs, and a check of its goals."""

from __future__ import annotations

from pfray.config.schema import Experiment
from pfray.errors import GoalMissed
from pfray.reporting.goals import missed_goals
from pfray.reporting.observers import Observers
from pfray.reporting.remarks import headline, remarks
from pfray.reporting.summary import Summary, absolute_limits
from pfray.storage.run_folder import RunFolder
from pfray.workflow.results import Results
from pfray.workflow.search import SearchResult
from pfray.workflow.setup import LoadedRun


def make_summary(
    experiment: Experiment, loaded: LoadedRun, found: SearchResult, results: Results, seconds: dict[str, float]
) -> Summary:
    """The summary of a finished run. seconds: of each stage."""
    choice, exported = found.choice, results.exported
    tested = {name: measurement.to_dict() for name, measurement in results.measured.items()}
    return Summary(
        experiment=experiment.name,
        learner=experiment.learner.title,
        searcher=experiment.search.name,
        seed=experiment.seed,
        objective=loaded.objective.name,
        target=experiment.target.model_dump(exclude_none=True),
        limits=absolute_limits(experiment.target.costs(), loaded.limits, exported),
        teacher=tested["teacher"],
        uniform=tested.get("uniform"),
        allocate=tested.get("allocate"),
        compressed=tested["compressed"],
        exported=exported,
        plan=choice.plan,
        uniform_plan=found.uniform,
        choice=choice.to_dict(),
        trials={**found.trials, "best": choice.trial},
        seconds=seconds,
    )


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
    observers.note(f"files: {run.title}")
    observers.note(f"report: {run.report}")
