"""Settings as keyword arguments of a function: checked against its signature, and called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pfray.errors import nearest, short
from pfray.utils.user_code import user_code


def check_arguments(path: str, function: Callable[..., Any], settings: Mapping[str, Any]) -> list[str]:
    """The mistakes in ``settings`` as keyword arguments of ``function``, found without calling it."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return []
    names = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [
        f"{path}.{short(key)}: unknown setting. Allowed: {', '.join(names) or 'none'}.{nearest(key, names)}"
        for key in settings
        if key not in names
    ]


def call(kind: str, function: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    """What ``function`` makes of its settings. Raises ConfigError, naming the section ``kind``, where it fails."""
    with user_code(kind, f"correct the settings of '{kind}'"):
        return function(**settings)
