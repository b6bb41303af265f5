"""The DDPG agent and the searcher made of it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from envs.layerwise import toy
from pfray.agent import Agent
from pfray.search.base import PlanSearcher
from pfray.search.ddpg import DDPG, Settings, normalized
from pfray.search.random import Random
from pfray.search.random import Settings as RandomSettings
from pfray.space import CompressionSpace, Knob

SPACE, LIMITS, EVALUATE, _ = toy()
FIRST = (("uniform", SPACE.uniform(LIMITS)),)
STATE = Box(-1.0, 1.0, (2,), np.float32)
ACTION = Box(np.float32([0.0]), np.float32([4.0]))


def bandit(seed: int, rounds: int = 150) -> Agent:
    """An agent of a one-step task: the best action in 0..4 is 2 + s_0, the reward 1 minus the squared error."""
    agent, rng = Agent(STATE, ACTION, seed=seed, batch=64, critic_rate=3e-3, actor_rate=3e-3), np.random.default_rng(0)
    for number in range(rounds):
        state = rng.uniform(-1, 1, 2).astype(np.float32)
        action = agent.act(state, 0.5, explore=number < 40)
        agent.remember(state, action, 1 - float(action[0] - 2 - state[0]) ** 2, state, True)
        agent.train(5 if number >= 40 else 0)
    return agent


def drive(searcher: PlanSearcher, count: int, score=EVALUATE) -> list[dict]:
    entries = []
    for number in range(count):
        entries.append(searcher.suggest(str(number)))
        searcher.on_trial_complete(str(number), {"score": score(entries[-1]["plan"])})
    return entries


def search(**settings) -> DDPG:
    return DDPG(SPACE, LIMITS, Settings(**settings), seed=0, trials=60, first_plans=FIRST)


def test_the_agent_learns_the_best_action_of_each_state():
    agent = bandit(0)
    for first in (-0.8, 0.0, 0.8):
        assert agent.act(np.array([first, 0.3], np.float32))[0] == pytest.approx(2 + first, abs=0.3)


def test_the_same_seed_gives_the_same_agent_and_no_global_generator_moves():
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    states = np.random.default_rng(1).uniform(-1, 1, (5, 2)).astype(np.float32)
    first, again, other = ([bandit(seed, 60).act(state)[0] for state in states] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_an_agent_goes_on_after_pickling_as_if_nothing_had_been():
    agent = bandit(0, 60)
    copied = pickle.loads(pickle.dumps(agent))
    state = np.array([0.1, 0.2], np.float32)
    for one in (agent, copied):
        one.train(5)
    assert agent.act(state, 0.3) == copied.act(state, 0.3)


def test_target_networks_move_by_the_share_tau():
    agent = Agent(STATE, ACTION, tau=0.25)
    source, target = agent.critic[0].weight, agent.target_critic[0].weight
    with torch.no_grad():
        source.fill_(3.0)
        target.fill_(1.0)
    agent.follow()
    assert target.detach().numpy() == pytest.approx(1.5)  # 1 + 0.25 * (3 - 1)
    assert source.detach().numpy() == pytest.approx(3.0)


def test_a_discounted_future_is_learned_through_the_targets():
    # Two states in turn for ever, each worth 1: Q is 1 / (1 - gamma) = 2; where the episode ends it is 1.
    for over, value in ((False, 2.0), (True, 1.0)):
        agent = Agent(STATE, ACTION, gamma=0.5, tau=0.1, batch=32, critic_rate=3e-3)
        states = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
        for number in range(64):
            agent.remember(states[number % 2], agent.act(states[0], 0.5), 1.0, states[1 - number % 2], over)
        agent.train(400)
        row = torch.cat([agent._normal(states), torch.zeros(2, 1)], -1)
        assert agent.critic(row).detach().numpy() == pytest.approx(value, abs=0.15)


def test_the_buffer_keeps_the_newest():
    agent = Agent(STATE, ACTION, capacity=8)
    for number in range(20):
        agent.remember(np.zeros(2, np.float32), np.array([2.0], np.float32), float(number), np.zeros(2), True)
    assert len(agent) == 8
    assert sorted(agent.memory["reward"].ravel()) == list(range(12, 20))
    assert (agent.memory["action"] == 0).all()  # 2 is the middle of 0..4


def test_noise_is_cut_off_at_the_bounds_and_has_its_size_inside():
    agent = Agent(STATE, ACTION)
    state = np.zeros(2, np.float32)
    wide = np.array([agent.act(state, 5.0)[0] for _ in range(500)])
    assert wide.min() >= 0
    assert wide.max() <= 4
    assert wide.std() == pytest.approx(4 / 12**0.5, rel=0.1)  # nearly even over the range, nothing piled up at its ends
    narrow = np.array([agent.act(state, 0.1)[0] for _ in range(500)])
    assert narrow.std() == pytest.approx(0.2, rel=0.15)
    assert agent.act(state)[0] == agent.act(state)[0]


def test_other_spaces_are_refused():
    with pytest.raises(ValueError, match="Boxes"):
        Agent(STATE, Discrete(2))


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
        assert number == 0 or searcher.records[-1]["origin"] == ("random" if number < 5 else "searched")
    assert seen[:6] == [0.3] * 6
    assert seen[6:9] == pytest.approx([0.27, 0.243, 0.2187])
    assert seen[9:] == [0.2] * 3


def test_equal_scores_and_failures_only_do_no_harm():
    for outcome in (0.5, None):
        searcher = search(warmup=3)
        entries = drive(searcher, 10, lambda plan, outcome=outcome: outcome)
        assert all(SPACE.meets(entry["plan"], LIMITS) for entry in entries)
        assert all(torch.isfinite(p).all() for p in searcher.agent.actor.parameters())


def test_it_comes_nearer_to_the_toys_optimum_than_random_search():
    def distance(found: type[PlanSearcher], settings, seed: int) -> float:
        searcher = found(SPACE, LIMITS, settings, seed=seed, trials=60, first_plans=FIRST)
        drive(searcher, 60)
        return 1.0 - searcher.best()["score"]

    random = np.mean([distance(Random, RandomSettings(), seed) for seed in range(2)])
    learned = np.mean([distance(DDPG, Settings(), seed) for seed in range(2)])
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


def test_a_step_common_to_an_episodes_actions_teaches_nothing_where_the_target_undoes_it():
    def trained(step: float, level: bool) -> np.ndarray:
        agent = Agent(STATE, ACTION, batch=8, group=3, level=level, gamma=0.0)
        draws = np.random.default_rng(0)
        for _ in range(10):
            actions, reward = draws.uniform(1, 2, 3), draws.random()
            for action, bound in zip(actions, (True, True, False), strict=True):
                agent.remember(np.zeros(2), np.float32([action + step * bound]), reward, np.zeros(2), False, bound)
        agent.train(5)
        return agent.critic[0].weight.detach().numpy().copy()

    assert trained(0.0, True) == pytest.approx(trained(0.7, True), abs=1e-6)
    assert np.abs(trained(0.0, False) - trained(0.7, False)).max() > 1e-4


def test_of_the_draws_the_critic_chooses_the_one_it_values_most():
    agent = Agent(STATE, ACTION, group=4, level=True)
    weight, bias = agent.critic[0].weight, agent.critic[0].bias
    with torch.no_grad():
        # Q is the action of the knobs whose first observed number is 1, less that of all others.
        for layer in (agent.critic[0], agent.critic[2], agent.critic[4]):
            layer.weight.zero_()
            layer.bias.zero_()
        bias[0] = 3.0
        weight[0, 2], agent.critic[2].weight[0, 0], agent.critic[4].weight[0, 0] = 1.0, 1.0, 1.0
    states, bound = np.zeros((4, 2)), np.ones((4, 1))
    around = np.zeros((4, 1))
    bound[3] = 0  # the last is free: its own action counts, the others' common step does not
    few, many = (
        np.mean([agent.propose(states, around, bound, 0.3, count)[3, 0] for _ in range(40)]) for count in (1, 50)
    )
    assert many > few + 0.3


def test_the_last_of_many_knobs_does_not_pay_for_what_all_others_took():
    # As a network: large layers, and a classifier of 640 weights at the end.
    sizes = np.array([*[20_000.0] * 54, 640.0])
    knobs = tuple(Knob(f"layer{i}", 0.98, 0.0, "log_density", facts={"params": s}) for i, s in enumerate(sizes))
    space = CompressionSpace(knobs, lambda values: {"sparsity": float(np.rint(values * sizes).sum() / sizes.sum())})
    limits = {"sparsity": 0.9}
    first = space.uniform(limits)
    search = DDPG(space, limits, Settings(warmup=5), seed=0, trials=20, first_plans=(("uniform", first),))
    asked = drive(search, 20, lambda plan: 0.0)[1:]
    away = np.array([space.encode(entry["plan"]) - space.encode(first) for entry in asked])
    assert all(space.meets(entry["plan"], limits) for entry in asked)
    # 0.2 is the spread, the rest the common step onto the target. Walked without that step, half of the plans left the
    # classifier 2 % of its weights, a position of 0.
    assert np.abs(away).max() < 0.25
    assert np.abs(away[:, -1]).mean() < 2 * np.abs(away[:, :-1]).mean()
