"""An actor-critic agent for continuous actions: deep deterministic policy gradient (Lillicrap et al. 2016).

Notation: mu(s) actor, Q(s, a) critic, s (F,) observation, a (A,) action scaled to -1..1, G transitions in a group.

Beyond the paper, each off by default: groups of transitions that are learned from together, and an anchor that holds
the actor to what was done (see pfray/search/ddpg.py, which needs both).
"""

from __future__ import annotations

import copy

import gymnasium
import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import nn


class Agent:
    """DDPG on any environment whose observations and actions are Boxes; deterministic by ``seed``, and picklable.

    observations, actions: the environment's spaces. hidden: width of both layers of the actor and of the critic.
    gamma, tau: discount, and step of the target networks towards the others (Lillicrap et al., algorithm 1).
    batch: groups an update draws. group: consecutive transitions whose errors are averaged before they are squared;
    1 is DDPG. anchor: weight of the actor's squared distance to the executed actions; 0 is DDPG. level: whether a step
    common to a group's actions means nothing, because the environment undoes it. capacity: transitions kept, the
    newest.
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
        level: bool = False,
        capacity: int = 1_000_000,
    ) -> None:
        if not (isinstance(observations, gymnasium.spaces.Box) and isinstance(actions, gymnasium.spaces.Box)):
            raise ValueError(f"DDPG wants Boxes of observations and actions, not {observations} and {actions}")
        self.low, self.high = actions.low.astype(np.float32), actions.high.astype(np.float32)
        self.gamma, self.tau, self.batch, self.group, self.anchor = gamma, tau, batch, group, anchor
        self.capacity, self.level = capacity // group * group, level
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
        widths = {"observation": size, "action": width, "reward": 1, "next": size, "over": 1, "bound": 1}
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
        action = _truncated(mean, noise, self.rng.random(mean.shape)) if noise > 0 else mean
        scaled = self.low.ravel() + (action + 1) / 2 * (self.high - self.low).ravel()
        return scaled.reshape(self.low.shape).astype(np.float32)

    def propose(
        self, observations: np.ndarray, around: np.ndarray, bound: np.ndarray, noise: float, count: int
    ) -> np.ndarray:
        """Actions ``(G, A)``, scaled to -1..1, for a group of ``(G, F)`` observations that no action changes.

        Of ``count`` draws around mu(s), and as many around the actions ``around`` ``(G, A)``, those of the highest mean
        Q (Dulac-Arnold et al. 2015, algorithm 1, with draws in place of nearest neighbours). bound ``(G, 1)``: see
        ``remember``.
        """
        states = self._normal(observations)
        with torch.no_grad():
            centers = (self.actor(states).double().numpy(), around)
            drawn = np.concatenate([_truncated(c, noise, self.rng.random((count, *c.shape))) for c in centers])
            actions = self._leveled(torch.from_numpy(drawn.astype(np.float32)), torch.from_numpy(bound).float())
            values = self.critic(torch.cat([states.expand(len(actions), -1, -1), actions], -1)).mean((1, 2))
        return drawn[int(values.argmax())]

    def remember(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: float,
        following: np.ndarray,
        over: bool,
        bound: bool = True,
    ) -> None:
        """Store a transition; ``action`` is in the environment's units.

        over: ``following`` is worth nothing. bound: whether a step common to a group takes this action along.
        """
        scaled = 2 * (action - self.low) / (self.high - self.low) - 1
        row, stored = self.seen % self.capacity, len(self.memory["reward"])
        if row == stored:
            more = min(2 * stored, self.capacity)
            self.memory = {key: np.resize(array, (more, array.shape[1])) for key, array in self.memory.items()}
        values = (observation, scaled, reward, following, over, bound)
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
            action, value, bound = (torch.from_numpy(memory[key][drawn]) for key in ("action", "reward", "bound"))
            if self.gamma:
                with torch.no_grad():
                    ahead = self._normal(memory["next"][drawn])
                    next_value = self.target_critic(torch.cat([ahead, self.target_actor(ahead)], -1))
                    value = value + self.gamma * torch.from_numpy(1 - memory["over"][drawn]) * next_value
            action = self._leveled(action, bound)
            error = (self.critic(torch.cat([state, action], -1)) - value).mean(1)
            _descend(self.critic_optimizer, self.group * error.square().mean())
            chosen = self._leveled(self.actor(state), bound)
            loss = -self.critic(torch.cat([state, chosen], -1)).mean()
            if self.anchor:
                loss = loss + self.anchor * (chosen - action).square().mean()
            _descend(self.actor_optimizer, loss)
            if self.gamma:
                self.follow()

    def _leveled(self, actions: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
        """Actions ``(..., G, A)`` without what is common to the bound ones of a group, where that means nothing."""
        if not self.level:
            return actions
        common = (actions * bound).sum(-2, keepdim=True) / bound.sum(-2, keepdim=True)
        return actions - bound * common

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


def _layers(inputs: int, hidden: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _truncated(mean: np.ndarray, deviation: float, quantile: np.ndarray) -> np.ndarray:
    """Quantiles of normals cut off outside -1..1 (He et al. 2018, section 3.2)."""
    low, high = ndtr((-1.0 - mean) / deviation), ndtr((1.0 - mean) / deviation)
    inside = np.clip(low + quantile * (high - low), 1e-12, 1 - 1e-12)
    return np.clip(mean + deviation * ndtri(inside), -1.0, 1.0)
