"""Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv 1509.02971) as published for compression: AMC (He et
al. 2018, arXiv 1802.03494) and PocketFlow (Wu et al. 2018). An episode is a plan, a step is a knob.

The agent acts in the layer-wise environment, which keeps the target reachable by clipping actions (AMC, algorithm 1)
and gives the reward R of the plan at the last step. Every transition of the episode gets R, and the critic is fitted to
R - b + gamma Q'(s', mu'(s')), where b is the moving average of the rewards (AMC, equation 3).

The defaults are AMC's, with lengths for a search of some hundred trials; configs/search/ddpg_amc.yaml has AMC's exact
values, ddpg_pocketflow.yaml PocketFlow's.

Differences, because a plan's reward is measured elsewhere and later:
- An episode is run twice: with the actor in ``ask``, and again in ``tell`` with the plan's actions and its reward. The
  agent learns from every measured plan, including plans of other runs and plans that need no search.
- In between, plans that use less than the target allows are moved up onto it, as in every searcher.
- A failed trial gets the worst reward so far. A duplicate plan is not tried: another is drawn with more noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from pfray.search._ddpg_agent import Agent
from pfray.search._environment import make_environment
from pfray.search.base import PlanSearcher
from pfray.space import Plan

# Attributes of the environment that the search uses.
REQUIRED = ("action_for", "knob")
# Minimum noise, in half ranges of an action, for drawing a plan in place of a duplicate.
MIN_DUPLICATE_NOISE = 0.05


@dataclass(frozen=True)
class Settings:
    """env: id of the Gymnasium environment. observe: features observed (see envs/layerwise.py), ``amc`` or ``all``.
    spread: maximum distance of an action from the first plan, as a share of a knob's range; null lets the actions span
    every range from its compressed to its full end, as in AMC.

    warmup: trials before the networks are trained. noise: standard deviation of the exploration in half ranges of an
    action; after the warm-up it is multiplied by ``noise_decay`` each trial. noise_on: ``actions``, drawn from a
    truncated normal (AMC), or ``parameters`` of the actor, adapted to move the actions by ``noise`` (PocketFlow,
    Plappert et al. 2018); in the warm-up always the actions.

    gamma: discount. tau: soft-update rate of the target networks. baseline_decay: decay of the rewards' moving average
    b. updates: training steps per transition of a trial. batch: transitions per step. memory: episodes in the replay
    buffer. hidden: width of the networks' two hidden layers. layer_norm: if True, layer norm in the networks
    (PocketFlow). actor_rate, critic_rate: learning rates of Adam.
    """

    env: str = "envs:pfray/Layerwise-v0"
    observe: Literal["amc", "all"] = "amc"
    spread: Annotated[float, Field(gt=0, le=1)] | None = None
    warmup: Annotated[int, Field(ge=1)] = 20
    noise: Annotated[float, Field(gt=0, le=1)] = 1.0
    noise_decay: Annotated[float, Field(gt=0, le=1)] = 0.95
    noise_on: Literal["actions", "parameters"] = "actions"
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    tau: Annotated[float, Field(gt=0, le=1)] = 0.01
    baseline_decay: Annotated[float, Field(ge=0, lt=1)] = 0.95
    updates: Annotated[int, Field(ge=1)] = 1
    batch: Annotated[int, Field(ge=1)] = 64
    memory: Annotated[int, Field(ge=1)] = 100
    hidden: Annotated[int, Field(ge=1)] = 300
    layer_norm: bool = False
    actor_rate: Annotated[float, Field(gt=0)] = 1e-4
    critic_rate: Annotated[float, Field(gt=0)] = 1e-3


class DDPG(PlanSearcher):
    settings_type = Settings

    def __init__(self, *arguments: Any, seed: int = 0, **options: Any) -> None:
        super().__init__(*arguments, seed=seed, **options)
        set_, env = self.settings, self.environment()
        self.agent = Agent(
            env.observation_space,
            env.action_space,
            seed=seed,
            hidden=set_.hidden,
            layer_norm=set_.layer_norm,
            normalize=False,  # observations lie within -1..1
            actor_rate=set_.actor_rate,
            critic_rate=set_.critic_rate,
            gamma=set_.gamma,
            tau=set_.tau,
            baseline_decay=set_.baseline_decay,
            batch=set_.batch,
            parameter_noise=set_.noise if set_.noise_on == "parameters" else None,
            capacity=set_.memory * len(self.space),
        )
        # Number of finished trials, and their worst score.
        self.episodes = 0
        self.worst: float | None = None

    def ask(self) -> Plan:
        warming = self.episodes < self.settings.warmup
        self.learned = not warming
        noise, actor = self.noise, None
        if self.duplicates:
            noise = min(1.0, self.spread_factor * max(noise, MIN_DUPLICATE_NOISE))
        elif self.agent.parameter_noise is not None and not warming:
            noise, actor = 0.0, self.agent.perturbed()
        env = self.environment()
        observation, _ = env.reset(seed=int(self.rng.integers(2**31)))
        while True:
            action = self.agent.act(observation, noise, actor=actor)
            if warming and self.space.free[env.unwrapped.knob]:
                action = self.rng.uniform(-1.0, 1.0, 1)
            observation, _, done, _, info = env.step(action)
            if done:
                return info["plan"]

    @property
    def noise(self) -> float:
        """Current standard deviation of the exploration, in half ranges of an action."""
        return self.settings.noise * self.settings.noise_decay ** max(0, self.episodes - self.settings.warmup)

    def tell(self, plan: Plan, score: float | None) -> None:
        self.episodes += 1
        score = self.worst if score is None else score
        if score is None:
            return  # a failure with no score so far to stand for it
        self.worst = score if self.worst is None else min(self.worst, score)
        self._store_episode(plan, score)
        self.agent.update_baseline(score)
        if self.episodes > self.settings.warmup:
            self.agent.train(self.settings.updates * len(self.space), distance=self.noise)

    def _store_episode(self, plan: Plan, score: float) -> None:
        """Run an episode of a plan of any origin, and store each transition with the reward of the last step."""
        env = self.environment(score)
        positions = self.space.encode(plan)
        observation, _ = env.reset(seed=int(self.rng.integers(2**31)))
        steps: list[tuple[np.ndarray, np.ndarray, np.ndarray, bool]] = []
        done, reward = False, 0.0
        while not done:
            action = env.unwrapped.action_for(positions[env.unwrapped.knob])
            next_observation, reward, done, _, _ = env.step(action)
            steps.append((observation, action, next_observation, done))
            observation = next_observation
        for observation, action, next_observation, done in steps:
            self.agent.remember(observation, action, reward, next_observation, done)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values, tensors = super().state()
        agent, learned = self.agent.state()
        return {**values, "episodes": self.episodes, "worst": self.worst, "agent": agent}, tensors | learned

    def load_state(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().load_state(values, tensors)
        self.episodes, self.worst = values["episodes"], values["worst"]
        self.agent.load_state(values["agent"], tensors)

    def environment(self, reward: float = 0.0) -> Any:
        """A new environment for each episode, cheap, so its state need not be saved. reward: given for any plan."""
        spread, free = self.settings.spread, self.space.free
        whole = free | (spread is None)
        return make_environment(
            self.settings.env,
            self.space,
            self.limits,
            REQUIRED,
            Settings.env,
            reward=reward,
            center=np.where(whole, 0.5, self.center),
            spread=np.where(whole, 0.5, spread or 0.5),
            observe=self.settings.observe,
        )
