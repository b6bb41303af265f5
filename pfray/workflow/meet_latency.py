"""Plans to be retrained under a latency limit: timed themselves, and moved onto the limit.

Plans with equal MACs differ in time by the channels of each layer, so the prediction (``latency_model.py``) is good
enough for a search and no more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from pfray.learner.context import Context, Recipe
from pfray.space import CompressionSpace, Limits, Plan
from pfray.units import latency_text
from pfray.utils.files import read_json, write_json
from pfray.workflow.latency_model import Done, PredictedCosts, time_share

# Most files made of a plan that misses the limit.
TRIES = 3
# Shares of the limit: what a plan is moved onto after its file missed it; below which a plan is compressed less; and
# above which it is compressed further. A timing is not exact, and the result may be 5 % slower.
AIM, FAST, SLOW = 0.95, 0.9, 1.02


@dataclass(frozen=True)
class TimedPlan:
    """A plan to be retrained. share: time of its file over the original's. moved: what was done to use the limit up."""

    plan: Plan
    share: float
    moved: Literal["", "further", "less"] = ""


def meet_latency(
    plans: dict[str, Plan],
    space: CompressionSpace,
    limits: Limits,
    recipe: Recipe,
    context: Context,
    path: Path,
    done: Done,
) -> dict[str, TimedPlan]:
    """The named plans, each compressed further while its file is slower than ``limits`` allow, or less if it is faster.

    path: file that the plans are written to, and read from if it exists, because another timing could give others.
    done(plans, words) is called after each timing.
    """
    if (known := read_json(path)) is not None and known.keys() == {"plans", "held"} and known["plans"] == plans:
        return {name: TimedPlan(**held) for name, held in known["held"].items()}
    if path.exists():
        logging.getLogger("pfray").warning("%s is damaged or of other plans; the plans are timed again", path)
    shares: dict[str, float] = {}
    held: dict[str, TimedPlan] = {}
    for count, (name, plan) in enumerate(plans.items()):

        def share_of(wanted: Plan) -> float:
            key = json.dumps(wanted, sort_keys=True)
            if key not in shares:
                shares[key] = _share(wanted, recipe, context)
            return shares[key]

        def tell(words: str, count: int = count, name: str = name) -> None:
            done(count, f"{name}: {words}")

        held[name] = _meet(plan, space, limits, share_of, tell)
    done(len(plans), "done")
    write_json(path, {"plans": plans, "held": {name: asdict(timed) for name, timed in held.items()}})
    return held


def _meet(
    plan: Plan, space: CompressionSpace, limits: Limits, share_of: Callable[[Plan], float], tell: Callable[[str], None]
) -> TimedPlan:
    costs = space.costs_of
    assert isinstance(costs, PredictedCosts), "made by timed_space"
    first, wanted, aimed = plan, limits["latency_ms"], limits["latency_ms"]
    held, loosened = None, False
    for _ in range(TRIES):
        share = share_of(plan)
        measured = share * costs.teacher_ms
        tell(f"{latency_text(measured)} of {latency_text(wanted)}")
        if measured <= SLOW * wanted and (held is None or share > held.share):
            held = TimedPlan(plan, share)
        if FAST * wanted <= measured <= SLOW * wanted or loosened:
            break
        loosened = measured < wanted
        aimed = max(aimed * AIM * wanted / measured, space.reachable("latency_ms")[0])
        before, plan = plan, space.fit_to_target(plan, {**limits, "latency_ms": aimed})
        if plan == before:
            break
    held = held or TimedPlan(plan, share)
    before_ms, after_ms = (space.costs(each)["latency_ms"] for each in (first, held.plan))
    return replace(held, moved="further" if after_ms < before_ms else "less" if after_ms > before_ms else "")


def _share(plan: Plan, recipe: Recipe, context: Context) -> float:
    candidate = recipe.candidate(plan)
    return time_share(candidate.bind(context.teacher, context.task), candidate.plan)
