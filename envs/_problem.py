"""The search problem of an environment: given whole, or a toy with a known optimum."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gymnasium.error import ResetNeeded

from pfray.space import CompressionSpace, Limits, Plan


class Problem(NamedTuple):
    """space: the knobs. target: the limits by unit that every plan keeps. evaluate: the reward of a whole plan.

    optimum: the best plan and its reward, if they are known.
    """

    space: CompressionSpace
    target: Limits
    evaluate: Callable[[Plan], float]
    optimum: tuple[Plan, float] | None = None


def problem(
    env: str,
    space: CompressionSpace | None,
    target: Limits | None,
    evaluate: Callable[[Plan], float] | None,
    toy: Callable[[], Problem],
) -> Problem:
    """The problem of the three arguments; ``toy()`` if all are None. env: the environment's name, for messages.

    Raises ValueError if only some are given, and for a space without knobs.
    """
    if space is None and target is None and evaluate is None:
        return toy()
    if space is None or target is None or evaluate is None:
        raise ValueError(f"{env} wants space, target and evaluate, or none of them for the toy problem")
    if not len(space):
        raise ValueError(f"{env} wants a space of one knob or more, not of none")
    return Problem(space, dict(target), evaluate)


def check_open(steps: int, space: CompressionSpace) -> None:
    """Raise ResetNeeded after the last knob."""
    if steps == len(space):
        raise ResetNeeded("this episode is over. Remedy: call reset first")
