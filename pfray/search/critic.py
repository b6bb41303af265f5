"""Draws around the best plan so far and around the first one, of which a critic network chooses the one to try.

The critic is that of deep deterministic policy gradient (Lillicrap et al. 2016, arXiv 1509.02971), and an episode is a
plan and a step a knob, as in AMC (He et al. 2018, arXiv 1802.03494). But it is not DDPG, which is in
pfray/search/ddpg.py, because a search has some hundred episodes and not a million steps.

Notation: Q(s, a) critic, s (F,) observation, a (A,) action scaled to -1..1, L knobs, R episode's reward.

What differs from DDPG:
- Every transition of an episode gets the final reward (AMC), and no bootstrap is added: gamma is 0.
- The critic's error is averaged over the episode before it is squared, so that the mean of Q over the knobs is fitted
  to R. Each knob by itself explains 1/L of R, and what the others did would be noise to it; together they explain it
  (the sum of Q is the return, as in value decomposition, Sunehag et al. 2017, arXiv 1706.05296).
- What is observed of a knob does not depend on the actions before it: with some hundred episodes the networks took the
  budget spent so far for a cause, and passed one knob's noise on to all later ones.
- A step common to all actions of an episode is taken off before the critic sees them: every plan is moved onto the
  target by such a step, so none was measured with another one, and what the critic promises there it never saw.
- There is no actor: a plan to try is the one that the critic prefers among draws (Dulac-Arnold et al. 2015, arXiv
  1512.07679). Draws around an actor's plan were no better than those around the first one (docs/results.md).
- Good episodes are replayed more often: the critic is asked about plans near to them.
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

# What the search asks its environment for.
NEEDS = ("action_for", "knob")


@dataclass(frozen=True)
class Settings:
    """env: the Gymnasium environment that the agent walks for what it observes; the plan that is tried is the draw
    itself, moved onto the target. spread: how far from the first plan an action leads at most, as a share of a knob's
    range. shuffle: whether the knobs are decided in another order in every episode.

    warmup: trials before the critic decides, random around the first plan. noise: standard deviation of the draws, as a
    share of ``spread``; after the warm-up it is multiplied by ``noise_decay`` each trial, down to ``noise_floor``.
    candidates: draws around the first plan, and around the best one, of which the critic chooses one to try.
    updates: training steps after each trial. batch: episodes in a step. hidden: width of the critic's two layers.
    critic_rate: step size of Adam. weight_decay: of the critic.

    elite: an episode whose reward is one interquartile range better is replayed exp(elite) times as often.
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
            level=self.use_up,
            capacity=knobs * 10**9,  # all episodes, for their rewards change with every score
        )
        # Of each episode in the buffer; None for a trial that failed.
        self.scores: list[float | None] = []

    def ask(self) -> Plan:
        warming = len(self.scores) < self.settings.warmup
        self.origin = "random" if warming else "searched"
        if self.refused:
            # The critic chooses nearly the same again, and no draw reaches further than the spread.
            return self.beside_best(self.settings.spread * len(self.space) ** 0.5)
        env = self.environment()
        seed = int(self.rng.integers(2**31))
        knobs, actions = self._explored(env, seed) if warming else self._proposed(env, seed)
        wanted = np.empty(len(self.space))
        wanted[knobs] = self._middle[knobs] + self._spread[knobs] * actions[:, 0]
        # Moved by one step of all knobs here already: moved once more, what rounding left of the budget is used too.
        return self._within_limits(self.space.decode(wanted))

    def _explored(self, env: Any, seed: int) -> tuple[list[int], np.ndarray]:
        """(knobs in their order, actions ``(L, 1)``) around the first plan; of searched settings, anywhere."""
        knobs, actions = [], []
        observation, _ = env.reset(seed=seed)
        for _ in range(len(self.space)):
            knobs.append(env.unwrapped.knob)
            free = self.space.free[knobs[-1]]
            drawn = self.rng.uniform(-1.0, 1.0, 1) if free else self.agent.act(observation, self.noise, explore=True)
            observation = env.step(drawn)[0]
            actions.append(drawn)
        return knobs, np.array(actions)

    def _proposed(self, env: Any, seed: int) -> tuple[list[int], np.ndarray]:
        """(knobs in their order, actions ``(L, 1)``) near the first plan's or the best one's, as the critic chooses."""
        best = self.best_positions
        knobs, states, actions = [], [], []
        observation, _ = env.reset(seed=seed)
        for _ in range(len(self.space)):
            knobs.append(env.unwrapped.knob)
            states.append(observation)
            actions.append(np.clip(env.unwrapped.action_for(best[knobs[-1]]), -1.0, 1.0))
            observation = env.step(actions[-1])[0]
        observed, bound = np.array(states), ~self.space.free[knobs, None]
        drawn = self.agent.draws(self.centers(np.array(actions)), self.noise, self.settings.candidates)
        return knobs, drawn[self.choice(observed, drawn, bound)]

    def centers(self, best: np.ndarray) -> tuple[np.ndarray, ...]:
        """What to draw around, ``(L, 1)`` each. best: the best plan's actions; the first plan's are 0."""
        return np.zeros_like(best, dtype=float), best

    def choice(self, observations: np.ndarray, drawn: np.ndarray, bound: np.ndarray) -> int:
        """The index of the draw ``(N, L, 1)`` to try."""
        return int(self.agent.values(observations, drawn, bound).argmax())

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
        env = self.environment()
        positions = self.space.encode(plan)
        observation, _ = env.reset(seed=int(self.rng.integers(2**31)))
        for step in range(len(positions)):
            knob = env.unwrapped.knob
            action = env.unwrapped.action_for(positions[knob])
            following = env.step(action)[0]
            bound = not self.space.free[knob]
            self.agent.remember(observation, action, 0.0, following, step == len(positions) - 1, bound)
            observation = following

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values, tensors = super().state()
        agent, learned = self.agent.state()
        return {**values, "scores": self.scores, "agent": agent}, tensors | learned

    def load_state(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().load_state(values, tensors)
        self.scores = list(values["scores"])
        self.agent.load_state(values["agent"], tensors)

    @property
    def _middle(self) -> np.ndarray:
        """``(L,)``: the positions that actions of 0 lead to. A searched setting is looked for in all of its range."""
        return np.where(self.space.free, 0.5, self.center)

    @property
    def _spread(self) -> np.ndarray:
        """``(L,)``: how far from there an action of 1 leads."""
        return np.where(self.space.free, 0.5, self.settings.spread)

    def environment(self) -> Any:
        """Made anew for each walk, which is quick, so that nothing of it has to be saved."""
        return make_environment(
            self.settings.env,
            self.space,
            self.limits,
            NEEDS,
            Settings.env,
            center=self._middle,
            spread=self._spread,
            shuffle=self.settings.shuffle,
            observe="static",
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
