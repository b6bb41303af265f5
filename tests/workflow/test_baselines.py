"""Plans that need no search: which there are, and which of them a searcher tries first."""

from __future__ import annotations

import pytest
from torch import nn

from learners.weight_sparse import WeightSparse
from pfray.data import digits
from pfray.errors import InfeasibleTarget
from pfray.search.allocate import Allocate
from pfray.search.random import Random
from pfray.search.uniform import Uniform
from pfray.workflow.baselines import first_plans, plans_without_search


def test_every_search_starts_with_allocate_then_uniform_then_heuristic():
    task = digits.build()
    model = nn.Sequential(nn.Flatten(), nn.Linear(task.train.inputs[0].numel(), 50), nn.Linear(50, 10))
    space, limits = WeightSparse(model, task).space(), {"sparsity": 0.7}
    plans = plans_without_search(space, limits, WeightSparse(model, task).error_curves())
    assert list(plans) == ["allocate", "uniform", "heuristic"]
    assert plans["uniform"] == space.uniform(limits)
    assert plans["heuristic"]["1"] > plans["heuristic"]["2"]
    assert len({tuple(plan.values()) for plan in plans.values()}) == 3
    assert all(space.meets(plan, limits) for plan in plans.values())
    assert first_plans(plans, Random) == tuple(plans.items())
    assert first_plans(plans, Allocate) == (("allocate", plans["allocate"]),)
    assert first_plans(plans, Uniform) == (("uniform", plans["uniform"]),)
    assert first_plans({**plans, "uniform": plans["allocate"]}, Random) == (
        ("allocate", plans["allocate"]), ("heuristic", plans["heuristic"]),
    )  # fmt: skip
    assert list(plans_without_search(space, limits)) == ["uniform", "heuristic"]
    with pytest.raises(InfeasibleTarget, match=r"target.sparsity: 0.99 is out of reach"):
        plans_without_search(space, {"sparsity": 0.99})
