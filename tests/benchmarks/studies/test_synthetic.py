from __future__ import annotations

import numpy as np
import pytest

from benchmarks.studies import synthetic, variants


def test_the_made_up_landscape_has_its_best_plan_on_the_target_and_a_uniform_plan_of_minus_one():
    space, score, best = synthetic.landscape(0)
    assert len(space) == synthetic.KNOBS
    assert space.meets(best, synthetic.LIMITS)
    assert score(best) == pytest.approx(0.0, abs=1e-9)
    assert score(space.uniform(synthetic.LIMITS)) == pytest.approx(-1.0)
    # A positive form: whichever way from the best plan, it gets worse.
    moves = 0.01 * np.random.default_rng(0).standard_normal((200, synthetic.KNOBS))
    assert max(score(space.decode(space.encode(best) + move)) for move in moves) < 0
    assert synthetic.landscape(1)[2] != best


@pytest.mark.parametrize("name", variants.ABLATION)
def test_every_variant_searches_the_made_up_landscape(name):
    record = synthetic.search(["synthetic", name, 0, 6, ""])
    assert len(record["scores"]) == 6
    assert record["scores"][0] == pytest.approx(-1.0)


def test_a_part_that_is_taken_out_of_the_critics_search_is_gone():
    space, *_ = synthetic.landscape(0)
    first = (("uniform", space.uniform(synthetic.LIMITS)),)
    best, centers = np.full((24, 1), 0.3), {}
    for name in ("critic", *variants.PARTS):
        found, settings = variants.variant(name, 10)
        searcher = found(space, synthetic.LIMITS, settings, seed=0, trials=10, first_plans=first)
        seen = np.zeros((24, searcher.agent.critic[0].in_features - 1))
        centers[name] = searcher.centers(best)
        drawn = np.zeros((50, 24, 1))
        drawn[:, 0, 0] = np.linspace(-1, 1, 50)
        chosen = {searcher.choice(seen, drawn, np.ones((24, 1))) for _ in range(5)}
        assert len(chosen) == 1 or name == "critic_by_chance"
    assert (centers["critic_best_only"][0] == best).all()
    assert (centers["critic"][0] == 0).all()
    assert all((around[1] == best).all() for around in centers.values())


def test_a_presets_warm_up_keeps_its_share_of_the_trials():
    assert variants.preset("ddpg_amc", 400)["warmup"] == 100
    assert variants.preset("ddpg_amc", 60) == {**variants.preset("ddpg_amc", 400), "warmup": 15}


def test_the_table_of_a_made_up_search_has_the_best_scores_and_those_at_half_the_trials():
    runs = [{"scores": [-1.0, -0.8, -0.5, -0.6], "seconds": 2.0}, {"scores": [-1.0, -0.6, -0.7, -0.3], "seconds": 4.0}]
    rows = synthetic.table({"critic": runs}).splitlines()
    assert rows[2] == "| critic | 2 | -0.400 | -0.500 .. -0.300 | -0.700 | 3.0 |"
