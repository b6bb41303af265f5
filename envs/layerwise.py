"""LayerwiseEnv: one episode is one plan, one step is one knob (He et al. 2018, "AMC", arXiv 1802.03494).

Notation: L knobs; ``position`` is a knob's value on its range, 0 compressed .. 1 full (see pfray.space); step t of an
episode decides the knob order[t]. A unit's cost is signed so that less is better: cost <= limit for macs, and
-sparsity <= -limit. Its floor is the cost of the most compressed plan, so limit - floor is the budget to be spent.

    action a in [-1, 1]  ->  position = center + spread * a, clipped to 0..1, then to what keeps the target reachable

The clip is AMC's (its Algorithm 1): knobs decided before stay as they are, knobs still to come are taken at their most
compressed end, and the highest position that then meets the limits is found by bisection over the exact costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import gymnasium
import numpy as np

from envs._problem import Problem, check_open, problem
from pfray.space import SHAPE, CompressionSpace, Knob, Limits, Plan
from pfray.units import AT_LEAST

# Halvings of a knob's range; one weight of a layer is a far larger part of it.
HALVINGS = 40
# Cosines that encode a knob's index.
WAVES = 63


class LayerwiseEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Decide a plan knob by knob; the reward is 0 until the last step, then ``evaluate(plan)``.

    space, target, evaluate: see ``Problem``; without them a toy landscape with a known ``optimum``.
    center, spread: ``(L,)`` positions that the action 0 leads to, and how far the actions -1 and 1 lead from them, one
        number for all or ``(L,)``. By default the actions span the whole range.
    shuffle: decide the knobs in another order every episode.
    observe: which observation ``(F,)``, all within -1..1:

    - ``all``: static facts of the knob to decide (see ``_static``); the share of steps done; for each unit the shares
      of the budget that are spent and left, and the most that the undecided knobs could spend (as a share of the whole
      range); the last executed action.
    - ``static``: the facts only, which do not depend on earlier actions.
    - ``amc``: AMC's layer embedding (its equation 1): t, n, c, h, w, stride, k, FLOPs[t], each scaled to 0..1 over the
      knobs; for each unit of the target the reduction so far, and the most that later knobs could spend, both as a
      share of the whole range; the last executed action.

    After the last step the facts are 0.

    ``info`` after a step: ``position``, as executed for the knob just decided; at the end ``plan`` as well.
    Raises InfeasibleTarget where no plan meets the target.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        space: CompressionSpace | None = None,
        target: Limits | None = None,
        evaluate: Callable[[Plan], float] | None = None,
        *,
        center: np.ndarray | None = None,
        spread: float | np.ndarray = 0.5,
        shuffle: bool = False,
        observe: Literal["all", "static", "amc"] = "all",
        render_mode: str | None = None,
    ) -> None:
        self.space, self.target, self.evaluate, self.optimum = problem("LayerwiseEnv", space, target, evaluate, toy)
        space = self.space
        if np.min(spread) <= 0:
            raise ValueError(f"LayerwiseEnv wants a spread above 0, not {spread}")
        self.center = np.full(len(space), 0.5) if center is None else np.asarray(center, dtype=float)
        if self.center.shape != (len(space),):
            raise ValueError(f"center has the shape {self.center.shape}, and there are {len(space)} knobs")
        self.spread = np.broadcast_to(np.asarray(spread, dtype=float), len(space))
        self.shuffle, self.observe, self.render_mode = shuffle, observe, render_mode

        self._single = [CompressionSpace((knob,), space.costs_of) for knob in space.knobs]
        self._sign = np.array([-1.0 if unit in AT_LEAST else 1.0 for unit in self.target])
        self._limits = self._sign * np.array(list(self.target.values()), dtype=float)
        ends = (list(space.decode(np.full(len(space), end)).values()) for end in (0.0, 1.0))
        self._lowest, self._highest = (np.array(values, dtype=float) for values in ends)
        self._floor, self._ceiling = self._costs(self._lowest), self._costs(self._highest)
        if (self._floor > self._limits).any():
            space.uniform(self.target)  # raises InfeasibleTarget with the reachable range
        self._facts = self._embedding() if observe == "amc" else self._static()
        self._begin(np.arange(len(space)))
        size = len(self._observe())
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    @property
    def knob(self) -> int:
        """The index of the knob that the next action decides."""
        return int(self._order[self._step])

    def action_for(self, position: float) -> np.ndarray:
        """The action ``(1,)`` that takes the present knob to ``position``; with it any plan can be replayed.

        It lies outside the action space for a position further than ``spread`` from the center; ``step`` accepts it.
        """
        return np.array([(position - self.center[self.knob]) / self.spread[self.knob]], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        count = len(self.space)
        self._begin(self.np_random.permutation(count) if self.shuffle else np.arange(count))
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        check_open(self._step, self.space)
        knob, wanted = self.knob, float(np.asarray(action).reshape(1)[0])
        if not math.isfinite(wanted):
            raise ValueError(f"an action is a finite number, not {wanted}")
        position = self._decide(knob, float(np.clip(self.center[knob] + self.spread[knob] * wanted, 0.0, 1.0)))
        self._full[knob] = self._values[knob]
        self._last = float(np.clip((position - self.center[knob]) / self.spread[knob], -1.0, 1.0))
        self._step += 1
        info: dict[str, Any] = {"position": position}
        over, reward = self._step == len(self.space), 0.0
        if over:
            info["plan"] = dict(zip(self.space.names, self._values.tolist(), strict=True))
            reward = float(self.evaluate(dict(info["plan"])))
        return self._observe(), reward, over, False, info

    # -- the plan so far

    def _begin(self, order: np.ndarray) -> None:
        self._order, self._step, self._last = order, 0, 0.0
        # The decided values, with all others at their most compressed and at their least compressed end.
        self._values: np.ndarray = self._lowest.copy()
        self._full: np.ndarray = self._highest.copy()

    def _decide(self, knob: int, position: float) -> float:
        """Give the knob the highest value up to ``position`` that keeps the target reachable; returns its position."""
        if not self._fits(knob, position):
            low, high = 0.0, position
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                low, high = (middle, high) if self._fits(knob, middle) else (low, middle)
            position = low
            self._fits(knob, position)
        return float(self._single[knob].encode({self.space.names[knob]: float(self._values[knob])})[0])

    def _fits(self, knob: int, position: float) -> bool:
        """Set the knob's value. True if the limits can then still be met."""
        self._values[knob] = self._single[knob].decode(np.array([position]))[self.space.names[knob]]
        return bool((self._costs(self._values) <= self._limits).all())

    def _costs(self, values: np.ndarray) -> np.ndarray:
        """Signed costs ``(U,)``, one for each unit of the target."""
        costs = self.space.costs_of(values[~self.space.free])
        return self._sign * np.array([costs[unit] for unit in self.target], dtype=float)

    # -- the observation

    def _observe(self) -> np.ndarray:
        facts = self._facts[self.knob] if self._step < len(self.space) else np.zeros(self._facts.shape[1])
        moving = {"all": self._spending, "static": list, "amc": self._reduction}[self.observe]()
        return np.clip(np.concatenate([facts, *moving]), -1.0, 1.0).astype(np.float32)

    def _spending(self) -> list[Any]:
        now, budget = self._costs(self._values), self._limits - self._floor
        spent = np.divide(now - self._floor, budget, out=np.ones_like(budget), where=budget > 0)
        ahead = self._share(self._costs(self._full) - now)
        return [[self._step / len(self.space)], spent, 1 - spent, ahead, [self._last]]

    def _reduction(self) -> list[Any]:
        following = self._values.copy()
        following[self._order[self._step + 1 :]] = self._highest[self._order[self._step + 1 :]]
        reduced = self._share(self._ceiling - self._costs(self._full))
        return [reduced, self._share(self._costs(following) - self._costs(self._values)), [self._last]]

    def _share(self, costs: np.ndarray) -> np.ndarray:
        """Costs as shares ``(U,)`` of each unit's range; 0 where it is empty."""
        whole = self._ceiling - self._floor
        return np.divide(costs, whole, out=np.zeros_like(whole), where=whole > 0)

    def _embedding(self) -> np.ndarray:
        """AMC's t, n, c, h, w, stride, k, FLOPs[t], ``(L, 8)``, scaled over the knobs to 0..1.

        Facts that a knob lacks count as 0; facts that are equal for all knobs are 0.
        """
        knobs = self.space.knobs
        rows = [[t, *(knob.facts.get(name, 0.0) for name in (*SHAPE, "macs"))] for t, knob in enumerate(knobs)]
        low, high = np.min(rows, axis=0), np.max(rows, axis=0)
        return np.divide(rows - low, high - low, out=np.zeros((len(knobs), len(low))), where=high > low)

    def _static(self) -> np.ndarray:
        """Facts ``(L, S)`` of each knob that are known before anything is decided.

        The index, as index / L and as cosines of 1, 2, 3, ... half waves, which separate up to WAVES + 1 knobs as well
        as an indicator for each would; the logarithm of every fact (params, macs, ...) but ``SHAPE``, over the largest
        knob's; the ends of the range over the largest end; 1 for integers only; the center.
        """
        knobs = self.space.knobs
        place = np.arange(len(knobs)) / len(knobs)
        waves = np.cos(np.pi * (place + 0.5 / len(knobs))[:, None] * np.arange(1, min(len(knobs), WAVES + 1)))
        names = sorted({name for knob in knobs for name in knob.facts} - {*SHAPE})
        facts = np.array([[math.log1p(abs(knob.facts.get(name, 0.0))) for name in names] for knob in knobs])
        ends = np.array([[knob.compressed, knob.full] for knob in knobs], dtype=float)
        integer = np.array([float(knob.integer) for knob in knobs])
        scaled = [array / np.maximum(np.abs(array).max(0, initial=0.0), 1e-12) for array in (facts, ends)]
        columns = [place[:, None], waves, *scaled, integer[:, None], self.center[:, None]]
        return np.concatenate(columns, axis=1)


def toy() -> Problem:
    """Six layers, three quarters of whose weights must go; the best plan's reward is 1.

    The reward is 1 minus the squared distance of the positions from the best plan's, which lies on the target.
    """
    sizes = np.array([500, 1_000, 2_000, 4_000, 8_000, 16_000])

    def costs_of(values: np.ndarray) -> dict[str, float]:
        return {"sparsity": float(np.rint(values * sizes).sum() / sizes.sum())}

    knobs = tuple(
        Knob(f"layer{i}", compressed=0.98, full=0.0, scale="log_density", facts={"params": float(size)})
        for i, size in enumerate(sizes)
    )
    space, target = CompressionSpace(knobs, costs_of), {"sparsity": 0.75}
    away = np.array([0.25, -0.1, 0.2, -0.15, 0.1, -0.05])
    best = space.fit_to_target(space.decode(space.encode(space.uniform(target)) + away), target)
    positions = space.encode(best)

    def evaluate(plan: Plan) -> float:
        return 1.0 - float(((space.encode(plan) - positions) ** 2).sum())

    return Problem(space, target, evaluate, (best, evaluate(best)))
