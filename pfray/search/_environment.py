"""Makes the Gymnasium environment whose episodes are a searcher's plans, and checks its interface."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import gymnasium

from pfray.errors import ConfigError, first_line
from pfray.space import CompressionSpace, Limits, Plan


def make_environment(
    name: str,
    space: CompressionSpace,
    limits: Limits,
    required: Sequence[str],
    default: str,
    *,
    reward: float = 0.0,
    **options: Any,
) -> Any:
    """The environment ``name`` over ``space``, with the same reward for every plan. It is cheap, so it is never saved.

    required: attributes that the searcher uses (``action_for``), dotted for nested ones. Raises ConfigError, with
    ``default`` as the remedy, if there is no such environment or it lacks an attribute.
    """
    try:
        env = gymnasium.make(
            name,
            space=space,
            target=limits,
            evaluate=partial(_constant_reward, reward=reward),
            disable_env_checker=True,
            **options,
        )
        for attribute in required:
            attrgetter(attribute)(env.unwrapped)
    except (gymnasium.error.Error, ImportError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"search.env: '{name}' is no environment to search in ({first_line(error)}). "
            f"Remedy: {default}, or one with its arguments and its {', '.join(required)}"
        ) from error
    return env


def _constant_reward(plan: Plan, reward: float) -> float:
    return reward
