"""Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv 1509.02971), as AMC (He et al. 2018, 1802.03494) and
PocketFlow (Wu et al. 2018) search with it: an episode is a plan, a step is a knob, the reward comes at the end.

Notation: mu(s) actor, Q(s, a) critic, s (F,) observation, a (A,) action scaled to -1..1, L knobs, R episode's reward.

What differs from DDPG as it was published, because a search has some hundred episodes and not a million steps:
- Every transition of an episode gets the final reward (AMC), and no bootstrap is added: gamma is 0.
- The critic's error is averaged over the episode before it is squared, so that the mean of Q over the knobs is fitted
  to R. Each knob by itself explains 1/L of R, and what the others did would be noise to it; together they explain it
  (the sum of Q is the return, as in value decomposition, Sunehag et al. 2017, arXiv 1706.05296).
- What is observed of a knob does not depend on the actions before it: with some hundred episodes the networks took the
  budget spent so far for a cause, and passed one knob's noise on to all later ones.
- The actor is anchored to the executed actions (Fujimoto and Gu 2021, arXiv 2106.06860, eq. 3), and good episodes are
  replayed more often: the critic is believed near to what was measured only.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Any

import gymnasium
import numpy as np
import torch
from pydantic import Field
from torch import nn

from pfray.errors import ConfigError, first_line
from pfray.search.base import PlanSearcher
from pfray.space import Plan


class Agent:
    """DDPG on any environment whose observations and actions are Boxes; deterministic by ``seed``, and picklable.

    observations, actions: the environment's spaces. hidden: width of both layers of the actor and of the critic.
    gamma, tau: discount, and step of the target networks towards the others (Lillicrap et al., algorithm 1).
    batch: groups an update draws. group: consecutive transitions whose errors are averaged before they are squared;
    1 is DDPG. anchor: weight of the actor's squared distance to the executed actions; 0 is DDPG. capacity: transitions
    kept, the newest.
    """

    def __init__(
        self,
        observations: gymnasium.Space,
        actions: gymnasium.Space,
        *,
        seed: int = 0,
        hidden: int = 64,
        actor_rate: float = 1e-3,
        critic_rate: float = 1e-3,
        weight_decay: float = 0.0,
        gamma: float = 0.99,
        tau: float = 0.005,
        batch: int = 128,
        group: int = 1,
        anchor: float = 0.0,
        capacity: int = 1_000_000,
    ) -> None:
        if not (isinstance(observations, gymnasium.spaces.Box) and isinstance(actions, gymnasium.spaces.Box)):
            raise ValueError(f"DDPG wants Boxes of observations and actions, not {observations} and {actions}")
        self.low, self.high = actions.low.astype(np.float32), actions.high.astype(np.float32)
        self.gamma, self.tau, self.batch, self.group, self.anchor = gamma, tau, batch, group, anchor
        self.capacity = capacity // group * group
        self.rng = np.random.default_rng(seed)
        size, width = int(np.prod(observations.shape)), int(np.prod(actions.shape))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = nn.Sequential(*_layers(size, hidden, width), nn.Tanh())
            self.critic = nn.Sequential(*_layers(size + width, hidden, 1))
        with torch.no_grad():
            # Lillicrap et al., section 7: the first actions and values are near 0.
            for parameter in self.actor[-2].parameters():
                parameter.mul_(0.01)
        self.target_actor, self.target_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=actor_rate, fused=True)
        self.critic_optimizer = torch.optim.AdamW(
            self.critic.parameters(), lr=critic_rate, weight_decay=weight_decay, fused=True
        )
        # Replay buffer: arrays of one row a transition, doubled when full.
        self.seen = 0
        widths = {"observation": size, "action": width, "reward": 1, "next": size, "over": 1}
        self.memory = {key: np.zeros((group, columns), np.float32) for key, columns in widths.items()}
        # Running mean and sum of squared deviations of each observed number (Welford 1962).
        self.mean, self.squares = np.zeros(size), np.zeros(size)

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def act(self, observation: np.ndarray, noise: float = 0.0, explore: bool = False) -> np.ndarray:
        """The action for ``observation``: from a normal around mu(s), or around 0 to ``explore``, cut at the bounds.

        noise: standard deviation before the cut, as a share of half the action's range.
        """
        with torch.no_grad():
            mean = self.actor(self._normal(observation.reshape(1, -1)))[0].double().numpy()
        mean = np.zeros_like(mean) if explore else mean
        action = np.array([_truncated(m, noise, self.rng.random()) for m in mean]) if noise > 0 else mean
        scaled = self.low.ravel() + (action + 1) / 2 * (self.high - self.low).ravel()
        return scaled.reshape(self.low.shape).astype(np.float32)

    def remember(
        self, observation: np.ndarray, action: np.ndarray, reward: float, following: np.ndarray, over: bool
    ) -> None:
        """Store a transition; ``action`` is in the environment's units. ``over``: ``following`` is worth nothing."""
        scaled = 2 * (action - self.low) / (self.high - self.low) - 1
        row, stored = self.seen % self.capacity, len(self.memory["reward"])
        if row == stored:
            more = min(2 * stored, self.capacity)
            self.memory = {key: np.resize(array, (more, array.shape[1])) for key, array in self.memory.items()}
        values = (observation, scaled, reward, following, over)
        for array, value in zip(self.memory.values(), values, strict=True):
            array[row] = np.ravel(np.asarray(value))
        self.seen += 1
        away = np.ravel(observation) - self.mean
        self.mean = self.mean + away / self.seen
        self.squares = self.squares + away * (np.ravel(observation) - self.mean)

    def train(self, updates: int, odds: np.ndarray | None = None) -> None:
        """Update critic, actor and targets ``updates`` times. odds: of each stored group, ``(G,)``."""
        groups = len(self) // self.group
        memory = {key: array[: groups * self.group] for key, array in self.memory.items()}
        memory = {key: array.reshape(groups, self.group, -1) for key, array in memory.items()}
        for _ in range(updates):
            drawn = self.rng.choice(groups, self.batch, p=odds)
            state = self._normal(memory["observation"][drawn])
            action, value = (torch.from_numpy(memory[key][drawn]) for key in ("action", "reward"))
            if self.gamma:
                with torch.no_grad():
                    ahead = self._normal(memory["next"][drawn])
                    next_value = self.target_critic(torch.cat([ahead, self.target_actor(ahead)], -1))
                    value = value + self.gamma * torch.from_numpy(1 - memory["over"][drawn]) * next_value
            error = (self.critic(torch.cat([state, action], -1)) - value).mean(1)
            _descend(self.critic_optimizer, self.group * error.square().mean())
            chosen = self.actor(state)
            loss = -self.critic(torch.cat([state, chosen], -1)).mean()
            if self.anchor:
                loss = loss + self.anchor * (chosen - action).square().mean()
            _descend(self.actor_optimizer, loss)
            if self.gamma:
                self.follow()

    def follow(self) -> None:
        """Move the target networks by the share tau towards the trained ones."""
        with torch.no_grad():
            for target, source in ((self.target_actor, self.actor), (self.target_critic, self.critic)):
                torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), self.tau)

    def _normal(self, observation: np.ndarray) -> torch.Tensor:
        """Observations over their running mean and deviation; what never changed stays as it is but for the mean."""
        deviation = np.sqrt(self.squares / max(1, self.seen))
        scale = np.where(deviation > 1e-3, deviation, 1.0)
        return torch.from_numpy(((observation - self.mean) / scale).astype(np.float32))


@dataclass(frozen=True)
class Settings:
    """env: the Gymnasium environment that the agent walks. spread: how far from the first plan an action leads at most,
    as a share of a knob's range. shuffle: whether the knobs are decided in another order in every episode.

    warmup: trials before the actor decides, random around the first plan. noise: standard deviation of the exploration,
    as a share of ``spread``; after the warm-up it is multiplied by ``noise_decay`` each trial, down to ``noise_floor``.
    updates: training steps after each trial. batch: episodes in a step. hidden: width of the networks' two layers.
    actor_rate, critic_rate: step sizes of Adam. weight_decay: of the critic.

    elite: an episode whose reward is one interquartile range better is replayed exp(elite) times as often. anchor: how
    strongly the actor is held to the actions of the replayed episodes, against what the critic promises elsewhere.
    """

    env: str = "envs:pfray/Layerwise-v0"
    spread: Annotated[float, Field(gt=0, le=1)] = 0.4
    shuffle: bool = False
    warmup: Annotated[int, Field(ge=1)] = 20
    noise: Annotated[float, Field(gt=0, le=1)] = 0.25
    noise_decay: Annotated[float, Field(gt=0, le=1)] = 0.99
    noise_floor: Annotated[float, Field(gt=0, le=1)] = 0.05
    updates: Annotated[int, Field(ge=1)] = 40
    batch: Annotated[int, Field(ge=1)] = 32
    hidden: Annotated[int, Field(ge=1)] = 64
    actor_rate: Annotated[float, Field(gt=0)] = 3e-3
    critic_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.5
    elite: Annotated[float, Field(ge=0)] = 4.0
    anchor: Annotated[float, Field(ge=0)] = 3.0


class DDPG(PlanSearcher):
    settings_type = Settings

    def __init__(self, *arguments: Any, seed: int = 0, **options: Any) -> None:
        super().__init__(*arguments, seed=seed, **options)
        set_, knobs = self.settings, len(self.space)
        try:
            env = self._env()
            env.unwrapped.action_for(0.0)  # type: ignore[attr-defined]
        except (gymnasium.error.Error, ImportError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"search.env: '{set_.env}' is no environment to search in ({first_line(error)}). "
                f"Remedy: {Settings.env}, or one with its arguments and its action_for"
            ) from error
        self.agent = Agent(
            env.observation_space,
            env.action_space,
            seed=seed,
            hidden=set_.hidden,
            actor_rate=set_.actor_rate,
            critic_rate=set_.critic_rate,
            weight_decay=set_.weight_decay,
            gamma=0.0,
            batch=set_.batch,
            group=knobs,
            capacity=knobs * 10**9,  # all episodes, for their rewards change with every score
            # Per knob, where Q is about R / sqrt(L).
            anchor=set_.anchor * knobs**0.5,
        )
        # Of each episode in the buffer; None for a trial that failed.
        self.scores: list[float | None] = []

    def ask(self) -> Plan:
        warming = len(self.scores) < self.settings.warmup
        self.origin = "random" if warming else "searched"
        env, over = self._env(), False
        observation, _ = self._reset(env)
        while not over:
            action = self.agent.act(observation, self.noise, explore=warming)
            if warming and self.free[env.unwrapped.knob]:  # type: ignore[attr-defined]
                action = self.rng.uniform(-1.0, 1.0, 1)
            observation, _, over, _, info = env.step(action)
        return info["plan"]

    @property
    def noise(self) -> float:
        """The present standard deviation of the exploration, as a share of the spread."""
        set_ = self.settings
        decayed = set_.noise * set_.noise_decay ** max(0, len(self.scores) - set_.warmup)
        return max(decayed, min(set_.noise, set_.noise_floor))

    def tell(self, plan: Plan, score: float | None) -> None:
        self.scores.append(score)
        self._replay(plan)
        rewards = normalized(self.scores)
        # Every transition has its episode's reward; sqrt(L) because the sum of L independent shares grows so.
        count = len(self.space)
        self.agent.memory["reward"][: len(self.agent), 0] = np.repeat(rewards, count) / count**0.5
        odds = np.exp(self.settings.elite * (rewards - rewards.max()))
        if len(self.scores) >= self.settings.warmup:
            self.agent.train(self.settings.updates, odds / odds.sum())

    def _replay(self, plan: Plan) -> None:
        """Store the transitions of a plan, whoever made it: the environment gives what would have been observed.

        The actions are the plan's own, for it is the plan that was measured, even where it misses this search's target.
        """
        env, positions = self._env(), self.space.encode(plan)
        observation, _ = self._reset(env)
        for step in range(len(positions)):
            action = env.unwrapped.action_for(positions[env.unwrapped.knob])  # type: ignore[attr-defined]
            following = env.step(action)[0]
            self.agent.remember(observation, action, 0.0, following, step == len(positions) - 1)
            observation = following

    def _reset(self, env: gymnasium.Env) -> tuple[np.ndarray, dict]:
        return env.reset(seed=int(self.rng.integers(2**31)))

    def _env(self) -> gymnasium.Env:
        """Made anew for each walk, which is quick, so that nothing of it has to be saved."""
        # A searched setting is looked for in all of its range.
        return gymnasium.make(
            self.settings.env,
            space=self.space,
            target=self.limits,
            evaluate=_unmeasured,
            center=np.where(self.free, 0.5, self.center),
            spread=np.where(self.free, 0.5, self.settings.spread),
            shuffle=self.settings.shuffle,
            static=True,
            disable_env_checker=True,
        )


def normalized(scores: list[float | None]) -> np.ndarray:
    """Rewards ``(N,)``: scores over their median, in interquartile ranges, cut to -3..5; a failed trial is the worst.

    The median instead of AMC's moving average, and always of all trials, so that equal plans keep equal rewards and one
    hopeless plan does not flatten all others.
    """
    finite = [score for score in scores if score is not None]
    worst = min(finite, default=0.0)
    filled = np.array([worst if score is None else score for score in scores])
    low, middle, high = np.quantile(filled, (0.25, 0.5, 0.75))
    return np.clip((filled - middle) / (high - low or 1.0), -3.0, 5.0)


def _unmeasured(plan: Plan) -> float:
    return 0.0


def _layers(inputs: int, hidden: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _truncated(mean: float, deviation: float, quantile: float) -> float:
    """The quantile of a normal cut off outside -1..1 (He et al. 2018, section 3.2)."""
    normal = NormalDist(mean, deviation)
    low, high = normal.cdf(-1.0), normal.cdf(1.0)
    inside = min(max(low + quantile * (high - low), 1e-12), 1 - 1e-12)
    return min(max(normal.inv_cdf(inside), -1.0), 1.0)
