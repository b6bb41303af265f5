"""Policy gradient over the layers: REINFORCE (Williams 1992), as N2N (Ashok et al. 2018, section 3.2) and Pahwa et al.
2019 search for layers to remove. A bidirectional LSTM reads the descriptions of all layers and gives the action
probabilities of each. The students of an iteration are tried in parallel, then the policy takes one step.

Notation: L layers, F features per layer, A actions; pi(a | l) the policy, R a student's reward, b the exponential
moving average of rewards, the baseline. The objective is the mean of (R - b) sum_l log pi(a_l | l).

Differences from the papers, because a student is expensive to evaluate: an iteration takes several steps, also on the
students of the last few iterations. Each layer's gradient is weighted by pi / mu, mu the policy that drew the student,
and clipped if the ratio is far from 1 (Schulman et al. 2017, arXiv 1707.06347, equation 7). R - b is divided by the
standard deviation of the rewards, so that one learning rate suits rewards of any unit, and ``entropy`` times the
policy's entropy is added against premature convergence (``entropy: 0`` omits it); Pahwa et al. (section 3.4) and N2N
have neither. No student is tried twice.

The policy depends on a layer only through its description, so a policy learned on another model, or on other classes,
can be the start (``policy_from``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pfray.errors import ConfigError, short
from pfray.search import _trial_log
from pfray.search._environment import make_environment
from pfray.search._plan_file import expand_home
from pfray.search._state import load_module, load_optimizer, module_tensors, optimizer_tensors
from pfray.search.base import MAX_DUPLICATES, PlanSearcher
from pfray.space import Plan
from pfray.utils.cache import load_tensors, save_tensors

POLICY = "policy.safetensors"
# Attributes of the environment that the search uses.
REQUIRED = ("action_for", "descriptions", "action_space.n")
# Duplicate students drawn before the policy is flattened.
DRAWS_BEFORE_FLATTENING = 5
# Clip range of pi / mu around 1.
CLIP = 0.3


@dataclass(frozen=True)
class Settings:
    """env: id of the Gymnasium environment, with Discrete actions and action masks.

    students: trials per iteration, after which the policy is updated. memory: iterations whose students are used in an
    update. steps: optimizer steps per update (memory 1 and steps 1 is plain REINFORCE). rate: learning rate of Adam.
    decay: decay of the rewards' moving average. entropy: weight of the policy's entropy, against premature convergence.
    hidden: width of the LSTM per direction. levels: number of actions for knobs other than keep or remove.

    policy_from: folder of an earlier run by this searcher, whose learned policy is the start.
    """

    env: str = "envs:pfray/Removal-v0"
    students: Annotated[int, Field(ge=1)] = 5
    memory: Annotated[int, Field(ge=1)] = 4
    steps: Annotated[int, Field(ge=1)] = 8
    rate: Annotated[float, Field(gt=0)] = 0.01
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.8
    entropy: Annotated[float, Field(ge=0)] = 0.01
    hidden: Annotated[int, Field(ge=1)] = 30
    levels: Annotated[int, Field(ge=2)] = 5
    policy_from: str | None = None


@dataclass(frozen=True)
class Student:
    """actions: ``(L,)``. masks: ``(L, A)``, 1 for allowed actions. log_probs: log mu ``(L,)`` of the actions."""

    actions: np.ndarray
    masks: np.ndarray
    log_probs: np.ndarray
    score: float | None


class Policy(nn.Module):
    """Bidirectional LSTM from descriptions ``(L, F)`` to logits ``(L, A)``."""

    def __init__(self, inputs: int, hidden: int, actions: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, bidirectional=True)
        self.head = nn.Linear(2 * hidden, actions)

    def forward(self, descriptions: Tensor) -> Tensor:
        return self.head(self.lstm(descriptions)[0])


class PolicyGradient(PlanSearcher):
    settings_type = Settings

    def __init__(self, *arguments: Any, seed: int = 0, **options: Any) -> None:
        super().__init__(*arguments, seed=seed, **options)
        set_ = self.settings
        env = self.environment().unwrapped
        actions = int(env.action_space.n)
        self.descriptions = torch.from_numpy(env.descriptions).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = Policy(self.descriptions.shape[1], set_.hidden, actions)
        if set_.policy_from is not None:
            _load_policy(self.policy, expand_home(set_.policy_from))
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=set_.rate)
        self.baseline: float | None = None
        # Students of the last iterations; the last ``new_students`` of them were not used in an update yet.
        self.students: list[Student] = []
        self.new_students = 0

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values, tensors = super().state()
        tensors |= module_tensors("policy", self.policy) | optimizer_tensors("adam", self.optimizer)
        if self.students:
            tensors["actions"] = torch.from_numpy(np.stack([one.actions for one in self.students]))
            tensors["masks"] = torch.from_numpy(np.stack([one.masks for one in self.students]))
            tensors["log_odds"] = torch.from_numpy(np.stack([one.log_probs for one in self.students]))
        scores = [one.score for one in self.students]
        return {**values, "baseline": self.baseline, "students": scores, "new": self.new_students}, tensors

    def load_state(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().load_state(values, tensors)
        load_module("policy", self.policy, tensors)
        load_optimizer("adam", self.optimizer, tensors)
        self.baseline, self.new_students = values["baseline"], values["new"]
        self.students = [
            Student(tensors["actions"][i].numpy(), tensors["masks"][i].numpy(), tensors["log_odds"][i].numpy(), score)
            for i, score in enumerate(values["students"])
        ]

    def ask(self) -> Plan:
        with torch.inference_mode():
            logits = self.policy(self.descriptions).double().numpy()
        tried = self.tried_plans
        for draw in range(MAX_DUPLICATES):
            # A converged policy draws the same student repeatedly, so it is flattened.
            plan = self._within_limits(self._sample_plan(logits / 2.0 ** max(0, draw - DRAWS_BEFORE_FLATTENING)))
            if plan not in tried:
                break
        return plan

    def _sample_plan(self, logits: np.ndarray) -> Plan:
        env = self.environment()
        _, info = env.reset()
        for own in logits:
            allowed = np.where(info["action_mask"], own, -np.inf)
            weights = np.exp(allowed - allowed.max())
            info = env.step(int(self.rng.choice(len(weights), p=weights / weights.sum())))[-1]
        positions = self.space.encode(info["plan"])
        # A continuous knob is drawn uniformly around the level of its action.
        loose = np.array([not knob.choices for knob in self.space.knobs])
        reach = 0.5 / (self.settings.levels - 1)
        return self.space.decode(positions + loose * self.rng.uniform(-reach, reach, len(positions)))

    def tell(self, plan: Plan, score: float | None) -> None:
        self.students.append(Student(*self._replay(plan), score))
        self.new_students += 1
        if self.new_students >= self.settings.students:
            self._update_policy()
            self.students = self.students[-self.settings.students * (self.settings.memory - 1) :]
            self.new_students = 0

    def _replay(self, plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(actions ``(L,)``, masks ``(L, A)``, log mu ``(L,)``) of a plan of any origin."""
        env = self.environment()
        actions, masks = [], []
        _, info = env.reset()
        for position in self.space.encode(plan):
            masks.append(info["action_mask"])
            info = env.step(env.unwrapped.action_for(position))[-1]
            actions.append(info["action"])
        with torch.inference_mode():
            log_probs = self._log_probs(torch.from_numpy(np.array(masks)))
            own = log_probs.gather(1, torch.tensor(actions)[:, None])[:, 0]
        return np.array(actions), np.array(masks), own.numpy()

    def _update_policy(self) -> None:
        """Update the policy on the students; a failed one gets the worst score so far."""
        scores = [score for _, score in self.history if score is not None]
        scores += [student.score for student in self.students if student.score is not None]
        if not scores:
            return
        rewards = np.array([min(scores) if one.score is None else one.score for one in self.students])
        fresh = float(rewards[-self.new_students :].mean())
        baseline = fresh if self.baseline is None else self.baseline
        # In standard deviations, so that one learning rate suits scores of any unit.
        advantages = torch.from_numpy((rewards - baseline) / (rewards.std() or 1.0)).float()[:, None]
        actions = torch.from_numpy(np.stack([one.actions for one in self.students]))
        masks = torch.from_numpy(np.stack([one.masks for one in self.students]))
        drawn = torch.from_numpy(np.stack([one.log_probs for one in self.students]))
        for _ in range(self.settings.steps):
            log_probs = self._log_probs(masks)
            ratio = (log_probs.gather(2, actions[:, :, None])[:, :, 0] - drawn).exp()
            gain = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
            entropy = -(log_probs.exp() * log_probs).sum(2)
            loss = -(gain + self.settings.entropy * entropy).sum(1).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.baseline = self.settings.decay * baseline + (1 - self.settings.decay) * fresh
        if self.folder is not None:
            save_tensors(self.folder / POLICY, self.policy.state_dict())

    def _log_probs(self, masks: Tensor) -> Tensor:
        """log pi ``(..., L, A)`` over the allowed actions; about -1e9 for the others."""
        return self.policy(self.descriptions).masked_fill(masks == 0, -1e9).log_softmax(-1)

    def environment(self) -> Any:
        """A new environment for each episode; it is cheap, so its state need not be saved."""
        return make_environment(
            self.settings.env, self.space, self.limits, REQUIRED, Settings.env, levels=self.settings.levels
        )


def _load_policy(policy: Policy, folder: Path) -> None:
    """Load a run's policy. Raises ConfigError if there is none, or it is for other descriptions or actions."""
    remedy = "Remedy: the folder of a finished run with search.name policy_gradient"
    tensors = load_tensors(folder / _trial_log.FOLDER / POLICY)
    shown = short(str(folder), 200)
    if tensors is None or not all(t.is_floating_point() and t.isfinite().all() for t in tensors.values()):
        raise ConfigError(f"search.policy_from: {shown} holds no learned policy. {remedy}")
    own = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if own != found:
        name = next((name for name in own if own[name] != found.get(name)), "none")
        raise ConfigError(
            f"search.policy_from: {shown} holds a policy of another space ({name} is {found.get(name)} and not "
            f"{own.get(name)}). {remedy}, the same search.hidden and search.levels, and knobs of the same kind"
        )
    policy.load_state_dict(tensors)
