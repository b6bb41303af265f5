"""The searcher whose critic chooses among draws: what it stores, how it explores, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfray.search.base import PlanSearcher
from pfray.search.critic import Critic, Settings, normalized
from pfray.search.random import Random
from pfray.search.random import Settings as RandomSettings
from pfray.space import CompressionSpace, Knob
from tests.search.toy import LIMITS, SPACE, drive

FIRST = (("uniform", SPACE.uniform(LIMITS)),)


def search(**settings) -> Critic:
    return Critic(SPACE, LIMITS, Settings(**settings), seed=0, trials=60, first_plans=FIRST)


def test_every_transition_has_its_episodes_final_reward():
    searcher = search()
    drive(searcher, 9)
    scores = [record["score"] for record in searcher.records]
    rewards = searcher.agent.memory["reward"][:54, 0].reshape(9, 6)
    assert (rewards == rewards[:, :1]).all()
    assert rewards[:, 0] * 6**0.5 == pytest.approx(normalized(scores), abs=1e-6)
    assert searcher.agent.memory["over"][:54, 0].tolist() == [0, 0, 0, 0, 0, 1] * 9


def test_rewards_are_in_interquartile_ranges_and_a_failure_is_the_worst():
    assert normalized([1.0, 2.0, 3.0, 4.0, 5.0]).tolist() == [-1, -0.5, 0, 0.5, 1]
    assert normalized([1.0, 2.0, None, 4.0, 5.0]).tolist() == pytest.approx([-1 / 3, 0, -1 / 3, 2 / 3, 1])
    assert normalized([2.0, 2.0]).tolist() == [0, 0]
    assert normalized([None, None]).tolist() == [0, 0]
    assert normalized([0.0, 0.1, 0.2, 0.3, -1e9])[-1] == -3


def test_a_told_plan_is_stored_as_the_actions_that_lead_to_it():
    searcher = search(spread=0.2)
    center = searcher.center
    # The last reaches beyond the spread, as plans of another run may.
    plan = SPACE.fit_to_target(SPACE.decode(center + np.array([0.1, -0.1, 0.0, 0.05, 0.0, 0.0])), LIMITS)
    far = SPACE.fit_to_target(SPACE.decode(center + np.array([0.5, 0, 0, 0, 0, 0])), LIMITS)
    for number, told in enumerate((plan, far)):
        searcher.tell(told, 0.5)
        stored = searcher.agent.memory["action"][6 * number : 6 * number + 6, 0]
        assert stored == pytest.approx((SPACE.encode(told) - center) / 0.2, abs=1e-5)
    assert searcher.agent.memory["action"][6, 0] > 1.5


def test_a_plan_that_misses_the_target_is_learned_as_it_was_measured():
    searcher = search()
    searcher.warm_start([(SPACE.decode(np.full(6, 0.9)), 0.9), (FIRST[0][1], None)])
    assert searcher.agent.memory["action"][:6, 0] == pytest.approx(
        (0.9 - searcher.center) / Settings().spread, abs=1e-5
    )
    assert len(drive(searcher, 30)) == 30


def test_noise_decays_after_the_warm_up_down_to_its_floor():
    searcher = search(warmup=5, noise=0.3, noise_decay=0.9, noise_floor=0.2, updates=1)
    seen = []
    for number in range(12):
        seen.append(searcher.noise)
        drive(searcher, 1)
        assert number == 0 or searcher.records[-1]["origin"] == ("critic, random start" if number < 5 else "critic")
    assert seen[:6] == [0.3] * 6
    assert seen[6:9] == pytest.approx([0.27, 0.243, 0.2187])
    assert seen[9:] == [0.2] * 3


def test_equal_scores_and_failures_only_do_no_harm():
    for outcome in (0.5, None):
        searcher = search(warmup=3)
        entries = drive(searcher, 10, lambda entry, outcome=outcome: {"score": outcome})
        assert all(SPACE.meets(entry["plan"], LIMITS) for entry in entries)
        assert all(torch.isfinite(p).all() for p in searcher.agent.critic.parameters())


def test_it_comes_nearer_to_the_toys_optimum_than_random_search():
    def distance(found: type[PlanSearcher], settings, seed: int) -> float:
        searcher = found(SPACE, LIMITS, settings, seed=seed, trials=60, first_plans=FIRST)
        drive(searcher, 60)
        return 1.0 - searcher.best()["score"]

    random = np.mean([distance(Random, RandomSettings(), seed) for seed in range(2)])
    learned = np.mean([distance(Critic, Settings(), seed) for seed in range(2)])
    assert learned < 0.6 * random, (learned, random)


def test_the_knobs_can_be_decided_in_another_order_in_every_episode():
    orders = {}
    for shuffle in (False, True):
        searcher = search(shuffle=shuffle, warmup=3)
        entries = drive(searcher, 6)
        assert all(SPACE.meets(entry["plan"], LIMITS) for entry in entries)
        # The first number observed is the knob's place in the network.
        places = searcher.agent.memory["observation"][: 6 * len(SPACE), 0].reshape(6, -1)
        assert (np.sort(places) == np.sort(places[:1])).all()
        orders[shuffle] = {tuple(row) for row in places.tolist()}
    assert len(orders[False]) == 1
    assert len(orders[True]) > 1


def test_of_the_draws_the_critic_chooses_the_one_it_values_most():
    searcher = search()
    agent, count = searcher.agent, len(SPACE)
    weight, bias = agent.critic[0].weight, agent.critic[0].bias
    with torch.no_grad():
        # Q is the action of the knobs whose first observed number is 1, less that of all others.
        for layer in (agent.critic[0], agent.critic[2], agent.critic[4]):
            layer.weight.zero_()
            layer.bias.zero_()
        bias[0] = 3.0
        weight[0, -1], agent.critic[2].weight[0, 0], agent.critic[4].weight[0, 0] = 1.0, 1.0, 1.0
    states, bound = np.zeros((count, weight.shape[1] - 1)), np.ones((count, 1))
    bound[3] = 0  # is free: its own action counts, the others' common step does not

    def chosen(candidates: int) -> float:
        drawn = agent.sample(searcher.centers(np.zeros((count, 1))), 0.3, candidates)
        assert drawn.shape == (2 * candidates, count, 1)
        return drawn[searcher.choice(states, drawn, bound)][3, 0]

    few, many = (np.mean([chosen(candidates) for _ in range(40)]) for candidates in (1, 50))
    assert many > few + 0.3


def test_the_last_of_many_knobs_does_not_pay_for_what_all_others_took():
    # As a network: large layers, and a classifier of 640 weights at the end.
    sizes = np.array([*[20_000.0] * 54, 640.0])
    knobs = tuple(Knob(f"layer{i}", 0.98, 0.0, "log_density", facts={"params": s}) for i, s in enumerate(sizes))
    space = CompressionSpace(knobs, lambda values: {"sparsity": float(np.rint(values * sizes).sum() / sizes.sum())})
    limits = {"sparsity": 0.9}
    first = space.uniform(limits)
    search = Critic(space, limits, Settings(warmup=5), seed=0, trials=20, first_plans=(("uniform", first),))
    asked = drive(search, 20, lambda entry: {"score": 0.0})[1:]
    away = np.array([space.encode(entry["plan"]) - space.encode(first) for entry in asked])
    assert all(space.meets(entry["plan"], limits) for entry in asked)
    # 0.2 is the spread, the rest the common step onto the target. Walked without that step, half of the plans left the
    # classifier 2 % of its weights, a position of 0.
    assert np.abs(away).max() < 0.25
    assert np.abs(away[:, -1]).mean() < 2 * np.abs(away[:, :-1]).mean()
