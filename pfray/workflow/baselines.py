"""Plans without a search: the first plans of every search, and its baselines."""

from __future__ import annotations

from collections.abc import Mapping

from pfray.search.allocate import Curves, allocate_plan
from pfray.search.base import PlanSearcher
from pfray.search.heuristic import heuristic_plan
from pfray.space import CompressionSpace, Limits, Plan


def plans_without_search(space: CompressionSpace, limits: Limits, curves: Curves | None = None) -> dict[str, Plan]:
    """Plans by origin: allocate if there are error curves, uniform, and heuristic if the layers' sizes are known.

    Raises InfeasibleTarget if no plan meets the limits.
    """
    plans = {"allocate": allocate_plan(space, curves, limits)} if curves else {}
    plans["uniform"] = space.uniform(limits)
    sizes = ["params" in knob.facts for knob in space.knobs if not knob.free]
    if sizes and all(sizes):
        plans["heuristic"] = heuristic_plan(space, limits)
    return plans


def first_plans(plans: Mapping[str, Plan], searcher: type[PlanSearcher]) -> tuple[tuple[str, Plan], ...]:
    """(origin, plan) of the plans that a searcher tries first. Equal plans appear once.

    An open-ended searcher tries all of ``plans``, any other only its own.
    """
    chosen = [(origin, plan) for origin, plan in plans.items() if searcher.open_ended or origin == searcher.title()]
    return tuple(
        (origin, plan) for i, (origin, plan) in enumerate(chosen) if plan not in [earlier for _, earlier in chosen[:i]]
    )
