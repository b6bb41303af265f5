"""How near to the toy landscape's best plan a search comes."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests.search.toy import CENTER, SPACE, drive, make, plans


def test_random_plans_scatter_around_the_uniform_one_by_the_spread():
    entries = drive(make("random", trials=150))[3:]
    moves = np.array([SPACE.encode(plan) - CENTER for plan in plans(entries)])
    # What is left of a normal of 0.4 / sqrt(6) once the common move onto the target, which the large layer decides, is
    # taken out differs from knob to knob; their mean does not lie far from it.
    assert np.abs(moves.mean(0)).max() < 0.06
    assert 0.08 < moves.std() < 0.25


@functools.cache
def distance(name: str) -> float:
    """Squared distance of the best of 60 plans to the best there is, the mean over six seeds."""
    searchers = [make(name, seed=seed, trials=60) for seed in range(6)]
    for searcher in searchers:
        drive(searcher)
    return float(np.mean([1.0 - searcher.best()["score"] for searcher in searchers]))


# Measured, of random search's distance: tpe 0.51 over these six seeds and 0.50 over 18, gp 0.0014 over 12.
@pytest.mark.parametrize(("learned", "share"), [("tpe", 0.75), ("gp", 0.02)])
def test_what_learns_comes_nearer_to_the_best_plan_than_random_search(learned, share):
    assert distance(learned) < share * distance("random")
