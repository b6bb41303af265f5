"""Plans that give the same model: equal values, or values that the learner rounds to the same structure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pfray.learner.context import Context, Recipe
from pfray.learner.pipeline import Pipeline, split_plan
from pfray.space import CompressionSpace, Plan

# Decimals of a value that decide: knobs come from bisections and logarithms.
DECIMALS = 9


def merge_equal(
    plans: Mapping[str, Plan], chosen: str, space: CompressionSpace, recipe: Recipe, context: Context
) -> tuple[dict[str, Plan], dict[str, str]]:
    """(plans, of which those of one model are one plan; name of the model that shares its plan, by name).

    chosen: name of the plan that is kept as it is. A plan equal to it counts as shared with it, any other with the
    first of its equals.
    """
    order = [chosen, *(name for name in plans if name != chosen)]
    firsts: dict[str, str] = {}
    shared: dict[str, str] = {}
    for name in order:
        first = firsts.setdefault(_identity(plans[name], space, recipe, context), name)
        if first != name:
            shared[name] = first
    return {name: plans[shared.get(name, name)] for name in plans}, shared


def _identity(plan: Plan, space: CompressionSpace, recipe: Recipe, context: Context) -> str:
    """A text that plans of one model have in common.

    Exact costs count besides the structure, which need not tell how sparse or precise a layer's weights are.
    """
    candidate = recipe.candidate(plan)
    structure: Any
    if issubclass(candidate.algorithm, Pipeline):
        steps = split_plan(candidate.settings, candidate.plan)
        structure = [step.bind(context.teacher, context.task).structure(own) for step, own in steps]
    else:
        structure = candidate.bind(context.teacher, context.task).structure(candidate.plan)
    decided = json.dumps([structure, space.costs(plan), candidate.chosen], sort_keys=True, default=str)
    return json.dumps(json.loads(decided, parse_float=lambda text: round(float(text), DECIMALS)))
