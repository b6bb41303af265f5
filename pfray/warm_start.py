"""Start a search with what an earlier run's trials showed."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from pfray.config import Experiment, Search
from pfray.errors import ConfigError, first_line
from pfray.space import CompressionSpace, Limits, Plan

# A score means the same in two searches where these settings are the same.
SAME = ("objective", "thresholds", "rounds", "finetune_steps")
REMEDY = "Remedy: the folder of a run with the same model, learner and kind of score"


def read_earlier(experiment: Experiment, space: CompressionSpace, limits: Limits) -> list[tuple[Plan, float | None]]:
    """(plan, score) of the trials in the run folder ``search.warm_start`` that meet this search's limits.

    Raises ConfigError where the folder holds no trials, or those of another space or with another kind of score.
    """
    assert experiment.search.warm_start is not None
    folder = Path(experiment.search.warm_start).expanduser()
    try:
        text = (folder / "search" / "trials.jsonl").read_text(encoding="utf-8")
        raw = yaml.safe_load((folder / "experiment.yaml").read_text(encoding="utf-8"))
        # Without the end of the text after the last newline: a run that was killed may have left half a line.
        trials = [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]
        search = Search.model_validate(raw["search"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise ConfigError(
            f"search.warm_start: {folder} holds no run that can be read ({first_line(error)}). {REMEDY}"
        ) from error
    for key in SAME:
        if getattr(search, key) != getattr(experiment.search, key):
            raise ConfigError(
                f"search.warm_start: {folder} was searched with {key}={getattr(search, key)}, this run is with "
                f"{getattr(experiment.search, key)}, so their scores do not compare. {REMEDY}"
            )
    if any(set(trial["plan"]) != set(space.names) for trial in trials):
        other = set(trials[0]["plan"]) ^ set(space.names)
        raise ConfigError(
            f"search.warm_start: {folder} searched another space ({len(other)} knobs differ, such as "
            f"'{sorted(other)[0] if other else 'none'}'). {REMEDY}"
        )
    plans = [({name: trial["plan"][name] for name in space.names}, trial["score"]) for trial in trials]
    usable = [(plan, score) for plan, score in plans if space.meets(plan, limits)]
    if not usable:
        raise ConfigError(
            f"search.warm_start: none of the {len(trials)} trials of {folder} meets this run's target. "
            "Remedy: a run with the same target or a harder one"
        )
    return usable
