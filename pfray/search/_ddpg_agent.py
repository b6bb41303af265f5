"""Actor-critic agent for continuous actions: deep deterministic policy gradient (Lillicrap et al. 2016).

Notation: mu(s) actor, Q(s, a) critic, mu' and Q' their target networks, s (F,) observation, a (A,) action scaled to
-1..1, r reward, b its baseline, G transitions in a group. Q(s, a) is fitted to r - b + gamma Q'(s', mu'(s')).

Extensions of the paper, each off by default: the baseline (He et al. 2018, equation 3), layer norm and noise on the
actor's parameters (as in PocketFlow, Wu et al. 2018), and for pfray/search/critic.py groups of transitions with a joint
error and a critic without an actor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import nn

from pfray.search._parameter_noise import ParameterNoise
from pfray.search._state import (
    generator_state,
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    set_generator,
)


class Agent:
    """DDPG on any environment with Box observations and actions; deterministic by ``seed``.

    observations, actions: the environment's spaces. hidden: width of both hidden layers of the actor and the critic.
    layer_norm: if True, layer norm before each ReLU. normalize: if True, observations are standardized by their running
    mean and deviation. actor_rate, critic_rate: learning rates of Adam; ``actor_rate`` None for no actor, with gamma 0.
    gamma, tau: discount, and soft-update rate of the target networks (Lillicrap et al., algorithm 1). With gamma 0
    there are no target networks.
    baseline_decay: decay of the rewards' moving average b; None for no baseline. batch: groups per update.
    parameter_noise: initial deviation of the noise on the actor's parameters; None for action noise only.
    group: consecutive transitions whose errors are averaged before squaring; 1 is DDPG. ignore_common_step: if True, a
    step common to a group's actions has no effect, because the environment undoes it. capacity: size of the replay
    buffer in transitions, the newest.
    Raises ValueError for other spaces, or for no actor with a gamma other than 0.
    """

    def __init__(
        self,
        observations: gymnasium.Space,
        actions: gymnasium.Space,
        *,
        seed: int = 0,
        hidden: int = 64,
        layer_norm: bool = False,
        normalize: bool = True,
        actor_rate: float | None = 1e-3,
        critic_rate: float = 1e-3,
        weight_decay: float = 0.0,
        gamma: float = 0.99,
        tau: float = 0.005,
        baseline_decay: float | None = None,
        batch: int = 128,
        parameter_noise: float | None = None,
        group: int = 1,
        ignore_common_step: bool = False,
        capacity: int = 1_000_000,
    ) -> None:
        if not (isinstance(observations, gymnasium.spaces.Box) and isinstance(actions, gymnasium.spaces.Box)):
            raise ValueError(f"DDPG wants Boxes of observations and actions, not {observations} and {actions}")
        if actor_rate is None and gamma:
            raise ValueError(f"what follows is worth what the actor makes of it: without one gamma is 0, not {gamma}")
        self.low, self.high = actions.low.astype(np.float32), actions.high.astype(np.float32)
        self.gamma, self.tau, self.batch, self.group = gamma, tau, batch, group
        self.capacity, self.normalize = capacity // group * group, normalize
        self.ignore_common_step, self.baseline_decay = ignore_common_step, baseline_decay
        self.baseline: float | None = None
        self.parameter_noise = None if parameter_noise is None else ParameterNoise(parameter_noise)
        self.rng = np.random.default_rng(seed)
        size, width = int(np.prod(observations.shape)), int(np.prod(actions.shape))
        self.networks = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if actor_rate is not None:
                self.networks["actor"] = nn.Sequential(*_layers(size, hidden, width, layer_norm), nn.Tanh())
            self.networks["critic"] = nn.Sequential(*_layers(size + width, hidden, 1, layer_norm))
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        if actor_rate is not None:
            with torch.no_grad():
                # Lillicrap et al., section 7: initial actions and values near 0.
                for parameter in self.actor[-2].parameters():
                    parameter.mul_(0.01)
            self.optimizers["actor"] = torch.optim.Adam(self.actor.parameters(), lr=actor_rate, fused=True)
        if gamma:
            for name in ("actor", "critic"):
                self.networks[f"target_{name}"] = copy.deepcopy(self.networks[name])
        self.optimizers["critic"] = torch.optim.AdamW(
            self.critic.parameters(), lr=critic_rate, weight_decay=weight_decay, fused=True
        )
        # Replay buffer: arrays with one row per transition, doubled when full.
        self.seen = 0
        widths = {"observation": size, "action": width, "reward": 1, "next": size, "over": 1, "bound": 1}
        self.memory = {key: np.zeros((group, columns), np.float32) for key, columns in widths.items()}
        # Running mean and sum of squared deviations ``(F,)`` of the observations (Welford 1962).
        self.mean, self.squares = np.zeros(size), np.zeros(size)

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    @property
    def actor(self) -> Any:
        return self.networks["actor"]

    @property
    def critic(self) -> Any:
        return self.networks["critic"]

    def act(
        self, observation: np.ndarray, noise: float = 0.0, explore: bool = False, actor: nn.Module | None = None
    ) -> np.ndarray:
        """Action from a truncated normal around mu(s), or around 0 with ``explore``, in the environment's units.

        noise: standard deviation before the truncation, as a share of half the action's range. actor: replaces mu,
        e.g. by ``perturbed()``.
        """
        mean = np.zeros(self.low.size)
        if not explore:
            with torch.no_grad():
                mean = (actor or self.actor)(self.normalized(observation.reshape(1, -1)))[0].double().numpy()
        action = _truncated(mean, noise, self.rng.random(mean.shape)) if noise > 0 else mean
        scaled = self.low.ravel() + (action + 1) / 2 * (self.high - self.low).ravel()
        return scaled.reshape(self.low.shape).astype(np.float32)

    def perturbed(self) -> nn.Module:
        """A copy of the actor with noise on its parameters, for one episode."""
        assert self.parameter_noise is not None
        return self.parameter_noise.perturbed(self.actor, self.rng)

    def sample(self, centers: Sequence[np.ndarray], noise: float, count: int) -> np.ndarray:
        """Actions ``(C count, G, A)``, scaled to -1..1: ``count`` draws around each of C centers ``(G, A)``."""
        return np.concatenate([_truncated(c, noise, self.rng.random((count, *c.shape))) for c in centers])

    def values(self, observations: np.ndarray, actions: np.ndarray, movable: np.ndarray) -> np.ndarray:
        """Mean Q ``(N,)`` of actions ``(N, G, A)`` for a group. movable ``(G, 1)``: see ``remember``."""
        with torch.no_grad():
            states = self.normalized(observations).expand(len(actions), -1, -1)
            scaled, mask = torch.from_numpy(actions.astype(np.float32)), torch.from_numpy(movable).float()
            return self.critic(torch.cat([states, self._without_common_step(scaled, mask)], -1)).mean((1, 2)).numpy()

    def remember(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: float,
        next_observation: np.ndarray,
        done: bool,
        movable: bool = True,
    ) -> None:
        """Store a transition; ``action`` is in the environment's units.

        done: if True, ``next_observation`` is terminal. movable: False if a step common to a group leaves this action.
        """
        scaled = 2 * (action - self.low) / (self.high - self.low) - 1
        row, stored = self.seen % self.capacity, len(self.memory["reward"])
        if row == stored:
            more = min(2 * stored, self.capacity)
            self.memory = {key: np.resize(array, (more, array.shape[1])) for key, array in self.memory.items()}
        values = (observation, scaled, reward, next_observation, done, movable)
        for array, value in zip(self.memory.values(), values, strict=True):
            array[row] = np.ravel(np.asarray(value))
        self.seen += 1
        away = np.ravel(observation) - self.mean
        self.mean = self.mean + away / self.seen
        self.squares = self.squares + away * (np.ravel(observation) - self.mean)

    def update_baseline(self, reward: float) -> None:
        """Update the baseline to ``decay * b + (1 - decay) * reward``, once per episode; it starts at the first reward.

        Stored rewards are not changed: an update subtracts the current b (PocketFlow).
        """
        if self.baseline_decay is not None:
            before = reward if self.baseline is None else self.baseline
            self.baseline = self.baseline_decay * before + (1 - self.baseline_decay) * reward

    def train(self, updates: int, probabilities: np.ndarray | None = None, distance: float = 0.0) -> None:
        """Update critic, actor and target networks ``updates`` times.

        probabilities: of drawing each stored group, ``(groups,)``; None for uniform. distance: desired mean change of
        actions by parameter noise, whose scale is adapted at every update.
        """
        groups = len(self) // self.group
        memory = {key: array[: groups * self.group] for key, array in self.memory.items()}
        memory = {key: array.reshape(groups, self.group, -1) for key, array in memory.items()}
        for _ in range(updates):
            drawn = self.rng.choice(groups, self.batch, p=probabilities)
            state = self.normalized(memory["observation"][drawn])
            action, movable = (torch.from_numpy(memory[key][drawn]) for key in ("action", "bound"))
            if self.parameter_noise is not None:
                with torch.no_grad():
                    moved = (self.actor(state) - self.perturbed()(state)).abs().mean().item()
                self.parameter_noise.adapt(moved, distance)
            value = self.td_targets(*(memory[key][drawn] for key in ("reward", "next", "over")))
            action = self._without_common_step(action, movable)
            error = (self.critic(torch.cat([state, action], -1)) - value).mean(1)
            _descend(self.optimizers["critic"], self.group * error.square().mean())
            if "actor" in self.optimizers:
                chosen = self._without_common_step(self.actor(state), movable)
                _descend(self.optimizers["actor"], -self.critic(torch.cat([state, chosen], -1)).mean())
            if self.gamma:
                self.update_targets()

    def td_targets(self, reward: np.ndarray, next_observation: np.ndarray, done: np.ndarray) -> torch.Tensor:
        """Targets of Q, ``(..., 1)``: r - b + gamma Q'(s', mu'(s')), without the last term at the end of an episode.

        reward, done: ``(..., 1)``; next_observation: s' ``(..., F)``.
        """
        value = torch.from_numpy(reward - np.float32(self.baseline or 0.0))
        if self.gamma:
            with torch.no_grad():
                ahead = self.normalized(next_observation)
                action = self.networks["target_actor"](ahead)
                next_value = self.networks["target_critic"](torch.cat([ahead, action], -1))
            value = value + self.gamma * torch.from_numpy(1 - done) * next_value
        return value

    def _without_common_step(self, actions: torch.Tensor, movable: torch.Tensor) -> torch.Tensor:
        """Actions ``(..., G, A)``, with ``ignore_common_step`` minus the mean of the movable ones in their group."""
        if not self.ignore_common_step:
            return actions
        common = (actions * movable).sum(-2, keepdim=True) / movable.sum(-2, keepdim=True)
        return actions - movable * common

    def update_targets(self) -> None:
        """Soft update: move the target networks by the share tau towards the trained ones."""
        with torch.no_grad():
            for name in ("actor", "critic"):
                target, source = self.networks[f"target_{name}"], self.networks[name]
                torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), self.tau)

    def normalized(self, observation: np.ndarray) -> torch.Tensor:
        """Observations standardized by running mean and deviation; constant ones are only centered."""
        if not self.normalize:
            return torch.from_numpy(observation.astype(np.float32))
        deviation = np.sqrt(self.squares / max(1, self.seen))
        scale = np.where(deviation > 1e-3, deviation, 1.0)
        return torch.from_numpy(((observation - self.mean) / scale).astype(np.float32))

    # -- saving

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(values for JSON, tensors) from which an agent with the same arguments continues identically."""
        noise = None if self.parameter_noise is None else self.parameter_noise.scale
        values = {"seen": self.seen, "baseline": self.baseline, "noise": noise, "rng": generator_state(self.rng)}
        tensors = module_tensors("networks", self.networks)
        for name, optimizer in self.optimizers.items():
            tensors |= optimizer_tensors(f"{name}_optimizer", optimizer)
        stored = max(len(self), self.group)
        tensors |= {f"memory.{key}": torch.from_numpy(array[:stored].copy()) for key, array in self.memory.items()}
        return values, tensors | {key: torch.from_numpy(getattr(self, key).copy()) for key in ("mean", "squares")}

    def load_state(self, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Load the result of ``state``. Raises KeyError, RuntimeError, TypeError or ValueError for anything else."""
        memory = {key: tensors[f"memory.{key}"].numpy().copy() for key in self.memory}
        rows = max(min(values["seen"], self.capacity), self.group)
        if any(array.shape != (rows, self.memory[key].shape[1]) for key, array in memory.items()):
            raise ValueError("the replay buffer is another agent's")
        load_module("networks", self.networks, tensors)
        for name, optimizer in self.optimizers.items():
            load_optimizer(f"{name}_optimizer", optimizer, tensors)
        set_generator(self.rng, values["rng"])
        if self.parameter_noise is not None:
            self.parameter_noise.scale = float(values["noise"])
        self.memory, self.seen, self.baseline = memory, values["seen"], values["baseline"]
        self.mean, self.squares = (tensors[key].numpy().copy() for key in ("mean", "squares"))


def _layers(inputs: int, hidden: int, outputs: int, layer_norm: bool) -> list[nn.Module]:
    norms = [[nn.LayerNorm(hidden)] if layer_norm else [] for _ in range(2)]
    return [
        nn.Linear(inputs, hidden), *norms[0], nn.ReLU(),
        nn.Linear(hidden, hidden), *norms[1], nn.ReLU(),
        nn.Linear(hidden, outputs),
    ]  # fmt: skip


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _truncated(mean: np.ndarray, deviation: float, quantile: np.ndarray) -> np.ndarray:
    """Quantiles of normals truncated to -1..1 (He et al. 2018, section 3.2)."""
    low, high = ndtr((-1.0 - mean) / deviation), ndtr((1.0 - mean) / deviation)
    inside = np.clip(low + quantile * (high - low), 1e-12, 1 - 1e-12)
    return np.clip(mean + deviation * ndtri(inside), -1.0, 1.0)
