"""The actor-critic agent: what it learns, hand-worked updates, and going on from what it saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from safetensors.torch import load_file, save_file

from pfray.search._ddpg_agent import Agent

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


@pytest.mark.parametrize(
    "options", [{}, {"gamma": 0.0, "group": 2, "weight_decay": 0.1},
                {"layer_norm": True, "parameter_noise": 0.3, "baseline_decay": 0.9, "normalize": False, "capacity": 16}]
)  # fmt: skip
def test_an_agent_goes_on_from_json_and_tensors_as_if_nothing_had_been(options, tmp_path):
    def live(agent: Agent, rounds: int) -> list[float]:
        for number in range(rounds):
            state = np.float32([number % 3 / 3, number % 2])
            agent.remember(state, agent.act(state, 0.3), 1.0 - number % 3, state, number % 2 == 1)
            agent.update_baseline(float(number))
            if len(agent) >= 8:
                agent.train(2, distance=0.1)
        moved = [agent.perturbed()] if agent.parameter_noise is not None else []
        return [float(agent.act(np.float32([0.1, 0.2]), 0.2, actor=actor)[0]) for actor in (None, *moved)]

    agent, restored = (Agent(STATE, ACTION, seed=seed, batch=4, **options) for seed in (1, 2))
    live(agent, 20)
    values, tensors = agent.state()
    save_file(tensors, tmp_path / "tensors")
    restored.load_state(json.loads(json.dumps(values)), load_file(tmp_path / "tensors"))
    assert live(restored, 30) == live(agent, 30)
    assert restored.baseline == agent.baseline


def test_without_a_discount_there_are_no_target_networks():
    assert list(Agent(STATE, ACTION, gamma=0.0).networks) == ["actor", "critic"]
    assert list(Agent(STATE, ACTION, gamma=0.0, actor_rate=None).networks) == ["critic"]
    with pytest.raises(ValueError, match="without one gamma is 0, not"):
        Agent(STATE, ACTION, actor_rate=None)
    assert list(Agent(STATE, ACTION).networks) == ["actor", "critic", "target_actor", "target_critic"]


def test_target_networks_move_by_the_share_tau():
    agent = Agent(STATE, ACTION, tau=0.25)
    source, target = agent.critic[0].weight, agent.networks["target_critic"][0].weight
    with torch.no_grad():
        source.fill_(3.0)
        target.fill_(1.0)
    agent.update_targets()
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
        row = torch.cat([agent.normalized(states), torch.zeros(2, 1)], -1)
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


def test_a_step_common_to_an_episodes_actions_teaches_nothing_where_the_target_undoes_it():
    def trained(step: float, level: bool) -> np.ndarray:
        agent = Agent(STATE, ACTION, batch=8, group=3, ignore_common_step=level, gamma=0.0)
        draws = np.random.default_rng(0)
        for _ in range(10):
            actions, reward = draws.uniform(1, 2, 3), draws.random()
            for action, bound in zip(actions, (True, True, False), strict=True):
                agent.remember(np.zeros(2), np.float32([action + step * bound]), reward, np.zeros(2), False, bound)
        agent.train(5)
        return agent.critic[0].weight.detach().numpy().copy()

    assert trained(0.0, True) == pytest.approx(trained(0.7, True), abs=1e-6)
    assert np.abs(trained(0.0, False) - trained(0.7, False)).max() > 1e-4




def test_the_baseline_is_the_moving_average_of_the_rewards_by_hand():
    agent = Agent(STATE, ACTION, baseline_decay=0.9)
    found = []
    for reward in (1.0, 2.0, 0.0):
        agent.update_baseline(reward)
        found.append(agent.baseline)
    assert found == pytest.approx([1.0, 1.1, 0.99])  # 0.9 * 1 + 0.1 * 2, 0.9 * 1.1
    plain = Agent(STATE, ACTION)
    plain.update_baseline(1.0)
    assert plain.baseline is None


def test_q_is_fitted_to_the_reward_over_the_baseline_and_the_targets_value_of_the_next_state_by_hand():
    agent = Agent(STATE, ACTION, gamma=0.5, baseline_decay=0.9, normalize=False)
    agent.update_baseline(0.75)
    # mu'(s') = s'_0 and Q'(s', a) = 2 s'_1 + 3 a + 1.
    actor, critic = torch.nn.Linear(2, 1), torch.nn.Linear(3, 1)
    with torch.no_grad():
        actor.weight.copy_(torch.tensor([[1.0, 0.0]]))
        actor.bias.zero_()
        critic.weight.copy_(torch.tensor([[0.0, 2.0, 3.0]]))
        critic.bias.fill_(1.0)
    agent.networks["target_actor"], agent.networks["target_critic"] = actor, critic
    reward, following = np.full((2, 1), 2.0, np.float32), np.float32([[0.5, 0.25]] * 2)
    # 2 - 0.75 + 0.5 * (2 * 0.25 + 3 * 0.5 + 1); where the episode is over, 2 - 0.75.
    found = agent.td_targets(reward, following, np.float32([[0], [1]]))
    assert found.detach().numpy().ravel() == pytest.approx([2.75, 1.25])


def test_layer_norm_makes_the_networks_blind_to_the_scale_of_their_first_layer():
    def moved(layer_norm: bool) -> float:
        agent = Agent(STATE, ACTION, layer_norm=layer_norm, normalize=False, hidden=16)
        row = torch.tensor([[0.5, -0.2, 0.3]])
        before = agent.critic(row).item()
        with torch.no_grad():
            for parameter in agent.critic[0].parameters():
                parameter.mul_(10)
        return abs(agent.critic(row).item() / before - 1)

    assert moved(True) < 0.01
    assert moved(False) > 0.1
    names = [type(module).__name__ for module in Agent(STATE, ACTION, layer_norm=True).actor]
    assert names == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear", "Tanh"]


def test_noise_on_the_parameters_adapts_until_it_moves_the_actions_as_far_as_wanted():
    agent = Agent(STATE, ACTION, batch=16, parameter_noise=3.0, actor_rate=1e-9, normalize=False, layer_norm=True)
    states = np.random.default_rng(0).uniform(-1, 1, (64, 2)).astype(np.float32)
    for state in states:
        agent.remember(state, np.float32([2.0]), 0.0, state, True)
    agent.train(250, distance=0.2)
    noisy = [agent.perturbed() for _ in range(50)]
    moved = np.mean([[abs(agent.act(s, actor=a) - agent.act(s)) / 2 for s in states[:8]] for a in noisy])
    assert moved == pytest.approx(0.2, rel=0.4)
    assert agent.parameter_noise.scale < 0.5
