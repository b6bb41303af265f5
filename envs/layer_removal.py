"""RemovalEnv: one episode is one student, one step decides a layer of the teacher: 0 removes it, 1 keeps it.

The decisions are those of N2N (Ashok et al. 2018, "N2N learning", section 3.1) and of Pahwa et al. 2019. A layer is
described by (t, k, s, p, n, s_start, s_end): type, kernel, stride, padding, outputs, start and end of the shortcut
around it. Spaces with other knobs work as well: an action is then one of ``levels`` positions on a knob's range.

Notation: L knobs, in order; A actions; a knob's position is 0 at its most compressed end (removed) .. 1 (kept).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from envs._problem import Problem, check_open, problem
from pfray.space import CompressionSpace, Knob, Limits, Plan, keeps_limits

# (origin, scale) of a knob's facts, the same in all spaces, so that policies transfer.
SCALES = {"type": (0.0, 3.0), "kernel": (3.0, 4.0), "stride": (1.0, 1.0), "padding": (1.0, 2.0)}
REMOVAL = (0.0, 1.0)


class RemovalEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Decide layer by layer what stays; the reward is 0 until the last step, then ``evaluate(plan)``.

    space, target, evaluate: see ``Problem``; without them a toy teacher with a known ``optimum``.
    levels: actions for a knob that has no choices, or more of them than this.

    ``action_mask``, ``(A,)``, in the info of ``reset`` and ``step`` is 1 for the actions allowed next. Forbidden are
    actions that put the target out of reach, remove a layer inside a removed block, or remove every layer. A forbidden
    action is no mistake: the nearest allowed one is executed (of two equally near the one that keeps more) and given as
    ``action``. After the last step ``plan`` is in the info as well.

    The observation ``(F + 2,)``, within -1..1: the row of ``descriptions`` ``(L, F)`` of the layer to decide, the share
    of steps done, and the last executed position. After the last step the row is 0.
    Raises InfeasibleTarget where no plan meets the target.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        space: CompressionSpace | None = None,
        target: Limits | None = None,
        evaluate: Callable[[Plan], float] | None = None,
        *,
        levels: int = 5,
        render_mode: str | None = None,
    ) -> None:
        self.space, self.target, self.evaluate, self.optimum = problem("RemovalEnv", space, target, evaluate, toy)
        space, self.render_mode = self.space, render_mode
        if levels < 2:
            raise ValueError(f"RemovalEnv wants 2 levels or more, not {levels} levels")
        space.uniform(self.target)  # raises InfeasibleTarget with the reachable range
        self._positions = [_positions(knob, levels) for knob in space.knobs]
        self._actions = max(len(own) for own in self._positions)
        self._only_removal = all(knob.choices == REMOVAL for knob in space.knobs)
        self.descriptions = describe(space)
        self._decided: np.ndarray
        self._mask: np.ndarray
        self._begin()
        size = self.descriptions.shape[1] + 2
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(self._actions)

    def action_for(self, position: float) -> int:
        """The action that takes the present knob nearest to ``position``; with it any plan can be replayed."""
        return int(np.abs(self._positions[self._step] - position).argmin())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._begin()
        return self._observe(), {"action_mask": self._mask}

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        check_open(self._step, self.space)
        if not 0 <= int(action) < self._actions:
            raise ValueError(f"an action is a whole number from 0 to {self._actions - 1}, not {action}")
        allowed = np.flatnonzero(self._mask)
        chosen = int(min(allowed, key=lambda other: (abs(other - int(action)), -other)))
        self._decided[self._step] = self._positions[self._step][chosen]
        self._step += 1
        self._mask = self._allowed()
        info: dict[str, Any] = {"action": chosen, "action_mask": self._mask}
        over, reward = self._step == len(self.space), 0.0
        if over:
            info["plan"] = self.space.decode(self._decided)
            reward = float(self.evaluate(dict(info["plan"])))
        return self._observe(), reward, over, False, info

    def _begin(self) -> None:
        # The decided positions, with all others at the most compressed end.
        self._decided = np.zeros(len(self.space))
        self._step = 0
        self._mask = self._allowed()

    def _allowed(self) -> np.ndarray:
        mask = np.zeros(self._actions, dtype=np.int8)
        if self._step == len(self.space):
            return mask + np.int8(1)
        own = self._positions[self._step]
        for action, position in enumerate(own):
            trial = self._decided.copy()
            trial[self._step] = position
            mask[action] = keeps_limits(self.space.costs_at(trial), self.target)
        # The most compressed end always keeps the target reachable.
        mask[0] = 1
        if mask[1 : len(own)].any() and (self._gone_already() or self._last_hope()):
            mask[0] = 0
        return mask

    def _gone_already(self) -> bool:
        """True if the block around the layer is removed: both actions would give the same network."""
        block = int(self.space.knobs[self._step].facts.get("block", 0))
        return bool(block) and self._decided[block - 1] == 0

    def _last_hope(self) -> bool:
        last = self._step == len(self.space) - 1
        return self._only_removal and last and not self._decided.any()

    def _observe(self) -> np.ndarray:
        count = len(self.space)
        row = self.descriptions[self._step] if self._step < count else np.zeros(self.descriptions.shape[1])
        last = self._decided[self._step - 1] if self._step else 0.0
        return np.array([*row, self._step / count, last], dtype=np.float32)


def _positions(knob: Knob, levels: int) -> np.ndarray:
    """Positions of a knob's actions, rising from 0 to 1."""
    if not knob.choices:
        return np.linspace(0.0, 1.0, levels)
    single = CompressionSpace((knob,), lambda _: {})
    every = np.sort([single.encode({knob.name: choice})[0] for choice in knob.choices])
    chosen = np.linspace(0, len(every) - 1, min(levels, len(every))).round().astype(int)
    return every[np.unique(chosen)]


def describe(space: CompressionSpace) -> np.ndarray:
    """Descriptions ``(L, F)`` of the knobs, within -1..1; unknown facts are 0.

    (t, k, s, p, n, s_start, s_end), 1 inside a removable block, the index over L, the logarithms of parameters and MACs
    over the largest, 1 for a searched setting.
    """
    depth = max((knob.facts.get("skip_end", 0.0) for knob in space.knobs), default=0.0) or 1.0
    most = {unit: max((knob.facts.get(unit, 0.0) for knob in space.knobs), default=0.0) for unit in ("params", "macs")}
    rows = []
    for place, knob in enumerate(space.knobs):
        facts = knob.facts
        scaled = [(facts.get(name, start) - start) / scale for name, (start, scale) in SCALES.items()]
        outputs = math.log2(1 + facts.get("outputs", 0.0)) / 12
        shortcut = [facts.get("skip_start", 0.0) / depth, facts.get("skip_end", 0.0) / depth]
        sizes = [math.log1p(facts.get(unit, 0.0)) / math.log1p(most[unit]) if most[unit] else 0.0 for unit in most]
        inside = float(facts.get("block", 0.0) > 0)
        rows.append([*scaled, outputs, *shortcut, inside, place / len(space), *sizes, float(knob.free)])
    return np.clip(np.array(rows), -1.0, 1.0)


def toy(stages: int = 4) -> Problem:
    """A teacher of three layers a stage, of which only the first, with stride 2, does anything.

    Each useful layer that is removed halves the accuracy A. The reward is N2N's, C (2 - C) A, with C the share of the
    parameters that are removed.
    """
    knobs, sizes = [], []
    for stage in range(stages):
        for layer in range(3):
            outputs = 16 * 2**stage
            inputs = outputs // 2 if layer == 0 and stage else outputs
            sizes.append(9.0 * inputs * outputs)
            facts = {"kernel": 3.0, "stride": 1.0 + (layer == 0), "padding": 1.0, "outputs": float(outputs),
                     "params": sizes[-1]}  # fmt: skip
            knobs.append(Knob(f"layer{stage}.{layer}", 0.0, 1.0, choices=REMOVAL, facts=facts, kind="layer"))
    weights, useful = np.array(sizes), np.arange(len(sizes)) % 3 == 0
    space = CompressionSpace(tuple(knobs), lambda values: {"params": float(values @ weights)})

    def evaluate(plan: Plan) -> float:
        kept = np.array([plan[name] for name in space.names])
        saved = 1 - kept @ weights / weights.sum()
        return float(saved * (2 - saved) * 0.5 ** (useful & (kept < 0.5)).sum())

    best = dict(zip(space.names, useful.astype(float).tolist(), strict=True))
    return Problem(space, {"params": float(0.9 * weights.sum())}, evaluate, (best, evaluate(best)))
