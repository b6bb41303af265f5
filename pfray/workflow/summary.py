"""The summary of a run: all that its report needs, and whether its goals were met."""

from __future__ import annotations

from typing import Any

from pfray.config.schema import Experiment
from pfray.errors import GoalMissed
from pfray.reporting.observers import Observers
from pfray.reporting.remarks import headline, latency_goal, remarks
from pfray.storage.run_folder import RunFolder
from pfray.workflow.results import Results
from pfray.workflow.search import Found
from pfray.workflow.setup import LoadedRun


def make_summary(
    experiment: Experiment, loaded: LoadedRun, found: Found, results: Results, seconds: dict[str, float]
) -> dict[str, Any]:
    """The summary as JSON values. seconds: of each stage."""
    choice, measured, exported = found.choice, results.measured, results.exported
    return {
        "experiment": experiment.name,
        "learner": experiment.learner.title,
        "searcher": experiment.search.name,
        "seed": experiment.seed,
        "target": experiment.target.model_dump(exclude_none=True),
        **{name: measurement.to_dict() for name, measurement in measured.items()},
        "exported": exported,
        "plan": choice.plan,
        "uniform_plan": found.uniform,
        "objective": loaded.objective.name,
        "choice": choice.to_dict(),
        "trials": {**found.trials, "best": choice.trial},
        "seconds": seconds,
    }


def check_goals(experiment: Experiment, summary: dict[str, Any]) -> None:
    """Raise GoalMissed where a complete run lost more accuracy than the target allows, or its file is slower."""
    allowed, mistakes = experiment.target.max_drop, []
    drop = summary["teacher"]["accuracy"] - summary["compressed"]["accuracy"]
    # The difference of two decimal fractions is not exact; a drop of just what is allowed is allowed.
    if allowed is not None and drop > allowed + 1e-9:
        mistakes.append(
            f"the result loses {100 * drop:.2f} points of accuracy; target.max_drop allows {100 * allowed:.2f}. "
            "The files are complete. Remedy: a milder target, more finetune.epochs, more search.trials or "
            "distill.weight=0.5"
        )
    wanted = latency_goal(summary)
    if wanted is not None and summary["compressed"]["latency_ms"] > wanted:
        mistakes.append(
            f"the .tflite takes {summary['compressed']['latency_ms']:.3f} ms; target.latency_ms allows {wanted:.3f}, "
            "5 % of doubt in it. The files are complete. Remedy: a lower target.latency_ms"
        )
    if mistakes:
        raise GoalMissed("\n".join(mistakes))


def tell_result(summary: dict[str, Any], run: RunFolder, observers: Observers) -> None:
    """Note the headline, the remarks, and where the files are."""
    observers.note("")
    observers.note(headline(summary))
    for remark in remarks(summary):
        observers.note(f"note: {remark}")
    observers.note(f"files: {run.title}")
    observers.note(f"report: {run.report}")
