"""Warm start of a search from the trials of an earlier run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pfray.config import strict_yaml
from pfray.config.schema import Experiment
from pfray.errors import ConfigError, first_line, short
from pfray.search._plan_file import expand_home
from pfray.search._trial_log import parse
from pfray.space import CompressionSpace, Limits, Plan
from pfray.storage.run_folder import RunFolder
from pfray.utils.settings import as_written
from pfray.workflow.components import with_own_defaults
from pfray.workflow.decided import Decided

# Scores of two runs compare if these sections and settings of the search are equal,
SECTIONS = ("model", "data", "learner")
SETTINGS = ("thresholds", "latency", "rounds")
# and, if trials are fine-tuned, these sections too.
TRAINING = ("finetune", "distill")
REMEDY = "Remedy: the folder of a run with the same model, learner and kind of score"


def read_earlier(
    experiment: Experiment,
    space: CompressionSpace,
    limits: Limits,
    objective: str,
    decided: Callable[[Experiment], Decided],
) -> list[tuple[Plan, float | None]]:
    """(plan, score) of the trials in the run folder ``search.warm_start`` that meet this search's limits.

    objective: name of this search's score. decided: for an experiment of this model, data and learner, what it leaves
    open. Raises ConfigError if the folder holds no trials, or trials of another space or with another kind of score.
    """
    assert experiment.search.warm_start is not None
    run = RunFolder(expand_home(experiment.search.warm_start))
    experiment = with_own_defaults(experiment)
    shown = short(run.title, 200)
    try:
        trials, _ = parse(run.trials.read_bytes())
        raw = strict_yaml.parse(run.experiment.read_text(encoding="utf-8"))
        other = with_own_defaults(as_written(Experiment, raw))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(
            f"search.warm_start: {shown} holds no run that can be read ({first_line(error)}). {REMEDY}"
        ) from error
    differ = [key for key in SECTIONS if getattr(other, key) != getattr(experiment, key)]
    differ += [f"search.{key}" for key in SETTINGS if getattr(other.search, key) != getattr(experiment.search, key)]
    if not differ:
        own, others = decided(experiment), decided(other)
        differ += ["search.finetune_steps"] if own.finetune_steps != others.finetune_steps else []
        differ += ["finetune.epochs"] if own.learner_settings != others.learner_settings else []
    if not differ and own.finetune_steps:
        differ += [key for key in TRAINING if getattr(other, key) != getattr(experiment, key)]
    if _objective(other, trials) != objective:
        differ.append("search.objective")
    if differ:
        raise ConfigError(
            f"search.warm_start: the scores of {shown} do not compare with this run's; these differ: "
            f"{', '.join(differ)}. {REMEDY}"
        )
    if any(set(trial["plan"]) != set(space.names) for trial in trials):
        unlike = set(trials[0]["plan"]) ^ set(space.names)
        raise ConfigError(
            f"search.warm_start: {shown} searched another space ({len(unlike)} knobs differ, such as "
            f"'{min(unlike, default='none')}'). {REMEDY}"
        )
    plans = [({name: trial["plan"][name] for name in space.names}, trial["score"]) for trial in trials]
    usable = [(plan, score) for plan, score in plans if space.meets(plan, limits)]
    if not usable:
        raise ConfigError(
            f"search.warm_start: none of the {len(trials)} trials of {shown} meets this run's target. "
            "Remedy: a run with the same target or a harder one"
        )
    return usable


def _objective(experiment: Experiment, trials: Sequence[dict[str, Any]]) -> str | None:
    """Name of a run's score: from its file, else the field of the measurement that equals every score."""
    scored = [trial for trial in trials if trial["score"] is not None]
    for name in ("agreement", "accuracy"):
        if experiment.search.objective is None and all(t["measurement"].get(name) == t["score"] for t in scored):
            return name
    return experiment.search.objective
