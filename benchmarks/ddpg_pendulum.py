"""Return of the DDPG agent of pfray/search/_ddpg_agent.py on a standard task, Pendulum-v1, to check the implementation.

An agent that does nothing gets about -1200, one that solves the task about -150. Evaluated without noise, on other
seeds than the training's.

    python -m benchmarks.ddpg_pendulum
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parser import make_parser
from benchmarks.result import close

if TYPE_CHECKING:
    from pfray.search._ddpg_agent import Agent

NAME = "ddpg_pendulum"
GOAL = ">= -200"
TASK = "Pendulum-v1"
WARMUP = 1_000  # steps of random actions first
NOISE = 0.1
EVALUATIONS = 10


def learn(seed: int, steps: int) -> Agent:
    """An agent trained for ``steps`` steps of the environment, with one update a step after the warm-up."""
    import gymnasium

    from pfray.search._ddpg_agent import Agent

    env = gymnasium.make(TASK)
    agent = Agent(env.observation_space, env.action_space, seed=seed, critic_rate=1e-3, actor_rate=1e-3)
    observation, _ = env.reset(seed=seed)
    for step in range(steps):
        action = agent.act(observation, 1.0 if step < WARMUP else NOISE, explore=step < WARMUP)
        following, reward, over, cut, _ = env.step(action)
        # Rewards of -16..0 a step, brought to the size that the networks start from.
        agent.remember(observation, action, float(reward) / 10, following, over)
        observation = env.reset()[0] if over or cut else following
        if step >= WARMUP:
            agent.train(1)
    return agent


def returns(agent: Agent, seed: int) -> list[float]:
    """The returns of episodes that the agent acts in without noise."""
    import gymnasium

    env, found = gymnasium.make(TASK), []
    for episode in range(EVALUATIONS):
        observation, _ = env.reset(seed=10_000 * (seed + 1) + episode)
        total, ended = 0.0, False
        while not ended:
            observation, reward, over, cut, _ = env.step(agent.act(observation))
            total, ended = total + float(reward), over or cut
        found.append(total)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    means = []
    for seed in options.seeds:
        start = time.perf_counter()
        agent = learn(seed, options.steps)
        seconds = time.perf_counter() - start
        found = returns(agent, seed)
        means.append(mean(found))
        print(
            f"seed {seed}: mean return {means[-1]:.0f} over {EVALUATIONS} episodes ({min(found):.0f} .. "
            f"{max(found):.0f}) after {options.steps} steps, {seconds:.0f} s",
            flush=True,
        )
    close(NAME, min(means), f"mean return on {TASK}, worst of {len(means)} seeds", GOAL)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(NAME, f"Train the DDPG agent on {TASK} and evaluate it without noise.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one agent each")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of the environment for each agent")
    return parser


if __name__ == "__main__":
    sys.exit(main())
