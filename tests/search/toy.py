"""The toy landscape as a search: what the tests of all searchers are made of."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.search import Searcher

from envs.layerwise import toy
from pfray.config.registry import component_modules, find_class
from pfray.search.base import PlanSearcher
from pfray.space import Plan
from pfray.workflow.baselines import first_plans, plans_without_search

NAMES = sorted(component_modules("search"))
OPEN_ENDED = [name for name in NAMES if find_class("search", name, PlanSearcher).open_ended]

SPACE, LIMITS, score, (BEST_PLAN, _) = toy()
CENTER, BEST = SPACE.encode(SPACE.uniform(LIMITS)), SPACE.encode(BEST_PLAN)
SIZES = np.array([knob.facts["params"] for knob in SPACE.knobs])
CURVES = {name: np.linspace(0.9, 0.0, 33) for name in SPACE.names}
# Uniform first, because the best plan is laid out from there.
PLANS = {**plans_without_search(SPACE, LIMITS), "allocate": plans_without_search(SPACE, LIMITS, CURVES)["allocate"]}

GIVEN_FILE = Path(__file__).with_name("given_plan.json")
GIVEN = json.loads(GIVEN_FILE.read_text())


def make(name: str, folder: Path | None = None, **arguments: Any) -> PlanSearcher:
    found = find_class("search", name, PlanSearcher)
    arguments = {"seed": 0, "trials": 16, "first_plans": first_plans(PLANS, found), **arguments}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    settings = found.settings_type(**({"plan": str(GIVEN_FILE)} if name == "given" else {}))
    return found(SPACE, LIMITS, settings, folder=folder, **arguments)


def result(plan: Plan) -> dict[str, Any]:
    return {"score": score(plan), "measurement/accuracy": score(plan), "seconds": 0.5, "training_iteration": 1}


def drive(
    searcher: PlanSearcher, count: int | None = None, outcome: Callable[[dict], dict | None] | None = None
) -> list[dict[str, Any]]:
    """Run up to ``count`` trials one after the other; ``outcome`` gives their results, None for a dead worker."""
    entries = []
    for number in itertools.count() if count is None else range(count):
        trial_id = f"{id(searcher)}-{number}"
        entry = searcher.suggest(trial_id)
        if entry == Searcher.FINISHED:
            break
        entries.append(entry)
        told = result(entry["plan"]) if outcome is None else outcome(entry)
        searcher.on_trial_complete(trial_id, told, error=told is None)
    return entries


def plans(entries: list[dict[str, Any]]) -> list[Plan]:
    return [entry["plan"] for entry in entries]
