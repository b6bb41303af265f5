"""The user's own plan: compression, retraining and export without a search.

The plan is never changed. It has to meet the experiment's target, which a run guarantees of its plan; one that misses
it is rejected with the distance. A plan that compresses more than the target asks is used unchanged, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfray.errors import ConfigError, short, shown
from pfray.search._plan_file import MAX_SHOWN, expand_home, parse_file, plan_mistakes
from pfray.search.base import PlanSearcher
from pfray.space import CompressionSpace, Limits, Plan, keeps_limits
from pfray.units import AT_LEAST

EXAMPLE = "a JSON file of knob names and values, or a run's summary.json"
# Prefixes of knobs that are settings.
SETTINGS = ("finetune.", "distill.", "learner.")


@dataclass(frozen=True)
class Settings:
    """plan: path of a JSON file of the plan, knob name -> value, or of a ``summary.json``, which has it as ``plan``."""

    plan: str | None = None


class Given(PlanSearcher):
    settings_type = Settings
    open_ended = False
    plan_source = "search.plan has now. Remedy: put that plan back, --force to begin anew, or name=... for another run"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.settings.plan is None:
            raise ConfigError(f"search.plan: missing. Remedy: {EXAMPLE}")
        plan = read_plan(expand_home(self.settings.plan), self.space, self.limits)
        self.trials, self.queue, self.asked = 1, [{"trial": 0, "origin": self.origin, "plan": plan}], 1


def read_plan(path: Path, space: CompressionSpace, limits: Limits) -> Plan:
    """Plan of the file, in the space's order. Raises ConfigError with a line for every mistake."""
    named = short(str(path), 200)
    try:
        found = parse_file(path)
    except ValueError as error:
        raise ConfigError(f"search.plan: {named} cannot be used ({error}). Remedy: {EXAMPLE}") from error
    if isinstance(found, dict) and isinstance(found.get("plan"), dict):
        found = found["plan"]
    wrong = []
    if isinstance(found, dict):
        for name in [name for name in found if name.startswith(SETTINGS) and name not in space.names]:
            wrong.append(f"{shown(name)} is a setting that is not searched here. Remedy: take it out of the plan, and "
                         f"give the experiment its value, {shown(found.pop(name))}")  # fmt: skip
    wrong += plan_mistakes(found, space)
    if not wrong:
        found = {name: float(found[name]) for name in space.names}
        wrong = [_miss(unit, cost, limits[unit]) for unit, cost in space.costs(found).items() if unit in limits and
                 not keeps_limits({unit: cost}, {unit: limits[unit]})]  # fmt: skip
    if len(wrong) > MAX_SHOWN:
        wrong[MAX_SHOWN:] = [f"{len(wrong) - MAX_SHOWN} mistakes more"]
    if wrong:
        raise ConfigError("\n".join(f"search.plan: {named}: {line}" for line in wrong))
    return found


def _miss(unit: str, cost: float, limit: float) -> str:
    """Message on a plan of this cost: its distance from the target, and the target that it would just meet."""
    above = unit not in AT_LEAST
    step = 10.0 ** (math.floor(math.log10(abs(cost) or 1.0)) - 4)
    met = (math.ceil if above else math.floor)(cost / step) * step
    return (
        f"the plan misses target.{unit}: it has {cost:.9g}, and {limit:.9g} or {'less' if above else 'more'} is asked "
        f"for ({100 * abs(cost - limit) / limit:.3g} % away). Remedy: change the plan, or target.{unit}={met:.12g}"
    )
