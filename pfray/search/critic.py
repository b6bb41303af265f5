"""Critic-guided search: a critic network chooses the next plan among draws around the best plan and the first one.

The critic comes from deep deterministic policy gradient (Lillicrap et al. 2016, arXiv 1509.02971); an episode is a plan
and a step a knob, as in AMC (He et al. 2018, arXiv 1802.03494). It is not DDPG, which is in pfray/search/ddpg.py,
because a search has some hundred episodes, not a million steps.

Notation: Q(s, a) critic, s (F,) observation, a (A,) action scaled to -1..1, L knobs, R episode's reward.

Differences from DDPG:
- Every transition of an episode gets the final reward (AMC), without a bootstrap: gamma is 0.
- The critic's error is averaged over the episode before squaring, which fits the mean of Q over the knobs to R. A
  single knob explains 1/L of R, and the other knobs' effects are noise to it; together they explain R (the sum of Q is
  the return, as in value decomposition, Sunehag et al. 2017, arXiv 1706.05296).
- The observation of a knob does not depend on earlier actions: with some hundred episodes the networks mistook the
  budget spent so far for a cause, and passed one knob's noise on to all later ones.
- A step common to all actions of an episode is subtracted before the critic sees them: every plan is moved onto the
  target by such a step, so plans that differ by one are never measured, and the critic could only extrapolate.
- There is no actor: the critic chooses among draws (Dulac-Arnold et al. 2015, arXiv 1512.07679). Draws around an
  actor's plan were no better than draws around the first one (docs/results.md).
- Good episodes are replayed more often, because the critic is asked about plans near them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch import Tensor

from pfray.search._ddpg_agent import Agent
from pfray.search._environment import make_environment
from pfray.search.base import PlanSearcher
from pfray.space import Plan

# Attributes of the environment that the search uses.
REQUIRED = ("action_for", "knob")


@dataclass(frozen=True)
class Settings:
    """env: the Gymnasium environment that the agent walks for what it observes; the plan that is tried is the draw
    itself, moved onto the target. spread: how far from the first plan an action leads at most, as a share of a knob's
    range. shuffle: whether the knobs are decided in another order in every episode.

    warmup: random trials around the first plan before the critic decides. noise: standard deviation of the draws, as a
    share of ``spread``; after the warm-up it is multiplied by ``noise_decay`` each trial, down to ``noise_floor``.
    candidates: draws around the first plan, and as many around the best one, for the critic to choose from.
    updates: training steps after each trial. batch: episodes per step. hidden: width of the critic's two hidden layers.
    critic_rate: learning rate of Adam. weight_decay: weight decay of the critic.

    elite: an episode whose reward is one interquartile range higher is replayed exp(elite) times as often.
    """

    env: str = "envs:pfray/Layerwise-v0"
    spread: Annotated[float, Field(gt=0, le=1)] = 0.2
    shuffle: bool = False
    warmup: Annotated[int, Field(ge=1)] = 20
    noise: Annotated[float, Field(gt=0, le=1)] = 0.25
    noise_decay: Annotated[float, Field(gt=0, le=1)] = 0.99
    noise_floor: Annotated[float, Field(gt=0, le=1)] = 0.05
    candidates: Annotated[int, Field(ge=1)] = 16
    updates: Annotated[int, Field(ge=1)] = 40
    batch: Annotated[int, Field(ge=1)] = 32
    hidden: Annotated[int, Field(ge=1)] = 64
    critic_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.5
    elite: Annotated[float, Field(ge=0)] = 4.0


class Critic(PlanSearcher):
    settings_type = Settings

    def __init__(self, *arguments: Any, seed: int = 0, **options: Any) -> None:
        super().__init__(*arguments, seed=seed, **options)
        set_, knobs = self.settings, len(self.space)
        env = self.environment()
        self.agent = Agent(
            env.observation_space,
            env.action_space,
            seed=seed,
            hidden=set_.hidden,
            actor_rate=None,
            critic_rate=set_.critic_rate,
            weight_decay=set_.weight_decay,
            gamma=0.0,
            batch=set_.batch,
            group=knobs,
            ignore_common_step=self.use_full_budget,
            capacity=knobs * 10**9,  # all episodes, for their rewards change with every score
        )
        # Score of each episode in the buffer; None for a failed trial.
        self.scores: list[float | None] = []

    def ask(self) -> Plan:
        warming = len(self.scores) < self.settings.warmup
        self.learned = not warming
        if self.duplicates:
            # The critic would choose nearly the same plan again, and no draw reaches beyond the spread.
            return self.sample_near_best(self.settings.spread * len(self.space) ** 0.5)
        env = self.environment()
        seed = int(self.rng.integers(2**31))
        knobs, actions = self._random_actions(env, seed) if warming else self._chosen_actions(env, seed)
        wanted = np.empty(len(self.space))
        wanted[knobs] = self._action_center[knobs] + self._action_radius[knobs] * actions[:, 0]
        # Moved onto the limits here already: the second move uses the budget that rounding left in the first.
        return self._within_limits(self.space.decode(wanted))

    def _random_actions(self, env: Any, seed: int) -> tuple[list[int], np.ndarray]:
        """(knobs in decision order, actions ``(L, 1)``) around the first plan; searched settings are uniform."""
        knobs, actions = [], []
        observation, _ = env.reset(seed=seed)
        for _ in range(len(self.space)):
            knobs.append(env.unwrapped.knob)
            free = self.space.free[knobs[-1]]
            drawn = self.rng.uniform(-1.0, 1.0, 1) if free else self.agent.act(observation, self.noise, explore=True)
            observation = env.step(drawn)[0]
            actions.append(drawn)
        return knobs, np.array(actions)

    def _chosen_actions(self, env: Any, seed: int) -> tuple[list[int], np.ndarray]:
        """(knobs in decision order, actions ``(L, 1)``): the critic's choice near the first plan or the best one."""
        best = self.best_positions
        knobs, states, actions = [], [], []
        observation, _ = env.reset(seed=seed)
        for _ in range(len(self.space)):
            knobs.append(env.unwrapped.knob)
            states.append(observation)
            actions.append(np.clip(env.unwrapped.action_for(best[knobs[-1]]), -1.0, 1.0))
            observation = env.step(actions[-1])[0]
        observed, movable = np.array(states), ~self.space.free[knobs, None]
        drawn = self.agent.sample(self.centers(np.array(actions)), self.noise, self.settings.candidates)
        return knobs, drawn[self.choice(observed, drawn, movable)]

    def centers(self, best: np.ndarray) -> tuple[np.ndarray, ...]:
        """Centers of the draws, ``(L, 1)`` each. best: actions of the best plan; those of the first plan are 0."""
        return np.zeros_like(best, dtype=float), best

    def choice(self, observations: np.ndarray, drawn: np.ndarray, movable: np.ndarray) -> int:
        """Index of the draw to try. drawn: ``(N, L, 1)``."""
        return int(self.agent.values(observations, drawn, movable).argmax())

    @property
    def noise(self) -> float:
        """Current standard deviation of the exploration, as a share of the spread."""
        set_ = self.settings
        decayed = set_.noise * set_.noise_decay ** max(0, len(self.scores) - set_.warmup)
        return max(decayed, min(set_.noise, set_.noise_floor))

    def tell(self, plan: Plan, score: float | None) -> None:
        self.scores.append(score)
        self._store_episode(plan)
        rewards = normalized(self.scores)
        # Every transition has its episode's reward; sqrt(L) because a sum of L independent shares grows with it.
        count = len(self.space)
        self.agent.memory["reward"][: len(self.agent), 0] = np.repeat(rewards, count) / count**0.5
        weights = np.exp(self.settings.elite * (rewards - rewards.max()))
        if len(self.scores) >= self.settings.warmup:
            self.agent.train(self.settings.updates, weights / weights.sum())

    def _store_episode(self, plan: Plan) -> None:
        """Store the transitions of a plan of any origin, with the observations of the environment.

        The actions are those of the measured plan, even if it misses this search's target.
        """
        env = self.environment()
        positions = self.space.encode(plan)
        observation, _ = env.reset(seed=int(self.rng.integers(2**31)))
        for step in range(len(positions)):
            knob = env.unwrapped.knob
            action = env.unwrapped.action_for(positions[knob])
            next_observation = env.step(action)[0]
            movable = not self.space.free[knob]
            self.agent.remember(observation, action, 0.0, next_observation, step == len(positions) - 1, movable)
            observation = next_observation

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values, tensors = super().state()
        agent, learned = self.agent.state()
        return {**values, "scores": self.scores, "agent": agent}, tensors | learned

    def load_state(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().load_state(values, tensors)
        self.scores = list(values["scores"])
        self.agent.load_state(values["agent"], tensors)

    @property
    def _action_center(self) -> np.ndarray:
        """Positions ``(L,)`` of actions of 0. For a searched setting, the middle of its range."""
        return np.where(self.space.free, 0.5, self.center)

    @property
    def _action_radius(self) -> np.ndarray:
        """Distances ``(L,)`` from ``_action_center`` to actions of 1; for a searched setting, half its range.

        The whole range for a layer among other knobs, which changes nothing before it has moved by half of that.
        """
        usual = np.where(self.space.layers_beside_others, 1.0, self.settings.spread)
        return np.where(self.space.free, 0.5, usual)

    def environment(self) -> Any:
        """A new environment for each episode; it is cheap, so its state need not be saved."""
        return make_environment(
            self.settings.env,
            self.space,
            self.limits,
            REQUIRED,
            Settings.env,
            center=self._action_center,
            spread=self._action_radius,
            shuffle=self.settings.shuffle,
            observe="static",
        )


def normalized(scores: list[float | None]) -> np.ndarray:
    """Rewards ``(N,)``: scores minus their median, in interquartile ranges, clipped to -3..5; a failure is the worst.

    The median of all trials replaces AMC's moving average, so that equal plans keep equal rewards and one very bad plan
    does not compress all others.
    """
    finite = [score for score in scores if score is not None]
    worst = min(finite, default=0.0)
    filled = np.array([worst if score is None else score for score in scores])
    low, middle, high = np.quantile(filled, (0.25, 0.5, 0.75))
    return np.clip((filled - middle) / (high - low or 1.0), -3.0, 5.0)
