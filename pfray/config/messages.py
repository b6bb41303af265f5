"""pydantic's validation errors as one line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from pfray.errors import nearest, short, shown


def describe_errors(error: ValidationError, prefix: str, allowed: Callable[[tuple[Any, ...]], list[str]]) -> list[str]:
    """One line for each mistake: the key's path, the value, the allowed range, the nearest name.

    allowed(location): keys allowed at the place of an unknown one.
    """
    lines = []
    for item in error.errors(include_url=False):
        location = tuple(part for part in item["loc"] if not (isinstance(part, str) and part.startswith("function-")))
        key = ".".join(short(str(part)) for part in (*filter(None, (prefix,)), *location))
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            names = allowed(location)
            lines.append(f"{key}: unknown key. Allowed: {', '.join(names)}.{nearest(str(location[-1]), names)}")
        elif item["type"] in ("missing", "missing_argument"):
            lines.append(f"{key}: missing. Remedy: give it a value")
        else:
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "value_error" or isinstance(item["input"], dict):
                lines.append(f"{key}: {message}" if key else message)  # a mistake of several sections has no path
            else:
                lines.append(f"{key}: {shown(item['input'])} is not allowed: {message[:1].lower()}{message[1:]}")
    return lines
