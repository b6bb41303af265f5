"""Settings as keyword arguments: checked against a function's signature, and passed to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pfray.errors import nearest, short
from pfray.utils.user_code import user_code


def check_arguments(path: str, function: Callable[..., Any], settings: Mapping[str, Any]) -> list[str]:
    """Unknown names among ``settings`` for ``function``, a line each; the function is not called."""
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
    """``function(**settings)``. Raises ConfigError that names the section ``kind`` if it fails."""
    with user_code(kind, f"correct the settings of '{kind}'"):
        return function(**settings)
