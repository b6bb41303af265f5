"""Search of a run: plans without a search, trials, the choice among the best, and the plans to be retrained.

Under a latency limit the chosen plan and the baselines are timed, and moved onto the limit. Of equal plans one is
retrained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pfray.config.schema import Experiment
from pfray.learner.scoring import TrialSpec
from pfray.objective import WEIGH_COST
from pfray.reporting.observers import Observers
from pfray.search.base import PlanSearcher
from pfray.space import Plan
from pfray.storage.run_folder import MODEL, RunFolder
from pfray.workflow import meet_latency, trials
from pfray.workflow.baselines import first_plans, plans_without_search
from pfray.workflow.equal_plans import merge_equal
from pfray.workflow.learner_check import check_curves
from pfray.workflow.meet_latency import TimedPlan
from pfray.workflow.setup import LoadedRun
from pfray.workflow.trials import Choice


@dataclass(frozen=True)
class SearchResult:
    """plans: to retrain, by name of their model. choice: the chosen trial. trials: counts.

    uniform: the plan with one value for all knobs, under a latency limit as its file is fast enough.
    timed: under a latency limit, the plans that were timed, by name. shared: model that has the same plan, by name.
    """

    plans: dict[str, Plan]
    choice: Choice
    trials: dict[str, int | None]
    uniform: Plan
    timed: Mapping[str, TimedPlan] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)


def search(
    experiment: Experiment, loaded: LoadedRun, spec: TrialSpec, run: RunFolder, observers: Observers
) -> SearchResult:
    """Search for the best plan, or continue an interrupted search. Raises SearchFailed."""
    components = loaded.components
    with observers.stage("plans without search"):
        # Not kept: what an algorithm computes once may be large, and the workers compute it for themselves.
        curves = components.learner(spec.context.teacher, loaded.task, components.learner_settings).error_curves()
        check_curves(curves, loaded.space)
        known = plans_without_search(loaded.space, loaded.limits, curves)
    searcher = _make_searcher(experiment, loaded, known, run)
    if (note := searcher.resume()) is not None:
        observers.note(f"note: {note}")
    if not searcher.finished():
        folder, scheduler = run.tune(run.search.name), experiment.search.scheduler
        trials.run_trials(spec, searcher, experiment.resources, folder, observers, scheduler)
    choice = trials.choose(spec, searcher, experiment.search.rescore, experiment.resources, run, observers)
    plans: dict[str, Plan] = {name: plan for name, plan in known.items() if name in experiment.search.baselines}
    plans[MODEL] = choice.plan
    # A plan given by the user is never changed. If it is too slow, the run misses its goal.
    fixed = {MODEL} if searcher.plan_source is not None else set()
    timed = _meet_latency({n: p for n, p in plans.items() if n not in fixed}, loaded, spec, run, observers)
    plans |= {name: each.plan for name, each in timed.items()}
    plans, shared = merge_equal(plans, MODEL, loaded.space, spec.recipe, spec.context)
    for name, other in shared.items():
        what = "the chosen one" if other == MODEL else f"the {other} plan"
        observers.note(f"note: the {name} plan is {what}; they share one training")
    choice = replace(choice, plan=plans[MODEL], moved=timed[MODEL].moved if MODEL in timed else "")
    return SearchResult(plans, choice, searcher.count(), plans.get("uniform", known["uniform"]), timed, shared)


def _make_searcher(
    experiment: Experiment, loaded: LoadedRun, known: Mapping[str, Plan], run: RunFolder
) -> PlanSearcher:
    components = loaded.components
    searcher = components.searcher(
        loaded.space, loaded.limits, components.search_settings, seed=experiment.seed, trials=experiment.search.trials,
        first_plans=first_plans(known, components.searcher), use_full_budget=loaded.objective.name not in WEIGH_COST,
        patience=experiment.search.patience, folder=run.search,
    )  # fmt: skip
    searcher.warm_start(loaded.earlier)
    return searcher


def _meet_latency(
    plans: dict[str, Plan], loaded: LoadedRun, spec: TrialSpec, run: RunFolder, observers: Observers
) -> dict[str, TimedPlan]:
    """The plans as their files meet the limit on the latency; empty without one."""
    if "latency_ms" not in loaded.limits:
        return {}
    with observers.stage("meet latency", total=len(plans)) as stage:
        return meet_latency.meet_latency(
            plans, loaded.space, loaded.limits, spec.recipe, spec.context, run.timed_plans, stage.update
        )
