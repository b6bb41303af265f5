"""A task's way to judge models, as plain values: its functions by name, with their settings, and their own code.

A run goes on only with the same ones; see ``pfray.storage.identity``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor

from pfray.errors import short
from pfray.task import Task
from pfray.utils.cache import content_key
from pfray.utils.code_key import code_key, name_of, own_numbers

# The module of a script or notebook. Its file holds the call of the run too, so only the functions' own code counts.
SCRIPT = "__main__"
# Largest tensor among an object's settings that is compared, such as the weights of classes; and that is written out.
LARGEST, WRITTEN = 1024, 8


def judging(task: Task) -> dict[str, str]:
    """Functions of the task and how its metric counts, by the words of ``pfray.compress``."""
    # The mean of the task's own loss is named by the loss.
    is_loss = getattr(task.score, "loss", None) is task.loss
    return {
        "loss": described(task.loss),
        "metric": task.metric_name,
        "score": "the mean loss" if is_loss else described(task.score),
        "higher_is_better": repr(task.higher_is_better),
        "is_share": repr(task.is_share),
        "evaluate": described(task.evaluate),
        "output": described(task.output),
        "soft_loss": described(task.soft_loss),
        "augment": described(task.augment),
    }


def judging_differences(old: Any, new: dict[str, str]) -> list[str]:
    """``metric mae instead of mse``. What the old one does not know is no difference."""
    if not isinstance(old, dict):
        return []
    changed = [key for key in new if key in old and old[key] != new[key]]
    if "metric" in changed:  # which says it all
        changed = [key for key in changed if key not in ("score", "higher_is_better", "is_share")]
    return [f"{key} {short(new[key], 200)} instead of {short(str(old[key]), 200)}" for key in changed]


def script_code(task: Task) -> dict[str, str]:
    """Content keys of the task's functions that a script or notebook defines, by the words of ``pfray.compress``."""
    functions = {
        "loss": task.loss, "metric": task.score, "evaluate": task.evaluate, "output": task.output,
        "soft_loss": task.soft_loss, "augment": task.augment,
    }  # fmt: skip
    return {key: code_key(value, SCRIPT) for key, value in functions.items() if _module(value) == SCRIPT}


def described(value: Any) -> str:
    """Name of a function or class with the settings that it carries: arguments of a partial, an object's own ones."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, partial):
        settings = [*map(_setting, value.args), *(f"{key}={_setting(each)}" for key, each in value.keywords.items())]
        return f"{described(value.func)}({', '.join(settings)})"
    if isinstance(value, MethodType):
        return f"{described(value.__self__)}.{value.__name__}"
    if hasattr(value, "__qualname__"):
        settings = [f"{name}={number}" for name, number in own_numbers(value).items()]
        return f"{name_of(value)}({', '.join(settings)})" if settings else name_of(value)
    if not hasattr(value, "__dict__") and " at 0x" not in repr(value):  # such as operator.itemgetter
        return repr(value)
    return f"{name_of(type(value))}({', '.join(f'{name}={text}' for name, text in _settings(value))})"


def _settings(value: Any) -> Iterator[tuple[str, str]]:
    """Attributes of an object that are named as arguments of its class; others may change while it is used."""
    names: dict[str, None] = {}
    for kind in type(value).__mro__[:-1]:
        with suppress(KeyError, TypeError, ValueError):
            names |= dict.fromkeys(inspect.signature(vars(kind)["__init__"]).parameters)
    own = vars(value)
    own = {**own, **own.get("_buffers", {})}
    for name in names:
        if (found := own.get(name)) is not None:
            yield name, _setting(found)


def _setting(value: Any) -> str:
    if isinstance(value, bool | int | float | str) or hasattr(value, "__qualname__"):
        return described(value)
    if isinstance(value, Tensor) and value.numel() <= LARGEST:
        numbers = [float(f"{number:.6g}") for number in value.detach().flatten().tolist()]
        return str(numbers) if len(numbers) <= WRITTEN else f"{len(numbers)} numbers {content_key(numbers)}"
    return type(value).__name__


def _module(value: Any) -> str | None:
    while isinstance(value, partial | MethodType):
        value = value.func if isinstance(value, partial) else value.__func__
    return getattr(value, "__module__", None)
