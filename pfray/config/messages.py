"""pydantic's validation errors as one line each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from pfray.errors import nearest, short, shown

# Words of the field for a key of another name, in small letters, and what else there is to say.
MEANT = {
    "flops": ("macs", " 1 MAC is 2 FLOPs: half the number, or a share such as 0.5x, which is the same"),
    "learning_rate": ("lr", ""), "data": ("train", ""), "dataset": ("train", ""), "val": ("validation", ""),
}  # fmt: skip


def unknown_key(path: str, key: str, names: Sequence[str], elsewhere: Sequence[str] = ()) -> str:
    """The line for an unknown key. names: keys allowed in its place. elsewhere: paths of the same key in other places.
    """
    meant, more = MEANT.get(key.lower(), ("", ""))
    hint = f" Did you mean '{meant}'?{more}" if meant in names else nearest(key, names)
    if not hint and elsewhere:
        hint = f" Did you mean {' or '.join(map(repr, elsewhere))}?"
    return f"{path}: unknown key. Allowed: {', '.join(names) or 'none'}.{hint}"


def describe_errors(
    error: ValidationError, prefix: str, allowed: Callable[[tuple[Any, ...]], list[str]],
    elsewhere: Callable[[str], list[str]] = lambda key: [],
) -> list[str]:  # fmt: skip
    """One line for each mistake: the key's path, the value, the allowed range, the nearest name.

    allowed(location): keys allowed at the place of an unknown one. elsewhere(key): paths of the same key elsewhere.
    """
    lines = []
    for item in error.errors(include_url=False):
        location = tuple(part for part in item["loc"] if not (isinstance(part, str) and part.startswith("function-")))
        key = ".".join(short(str(part)) for part in (*filter(None, (prefix,)), *location))
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            own = str(location[-1])
            lines.append(unknown_key(key, own, allowed(location), elsewhere(own)))
        elif item["type"] == "model_type":
            names = ", ".join(allowed((*location, "")))
            lines.append(f"{key}: {shown(item['input'])} is not a mapping. Allowed: a mapping of {names}")
        elif item["type"] in ("missing", "missing_argument"):
            lines.append(f"{key}: missing. Remedy: give it a value")
        else:
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "value_error" or isinstance(item["input"], dict):
                lines.append(f"{key}: {message}" if key else message)  # a mistake of several sections has no path
            else:
                hint = _unquoted(item["type"], item["input"])
                lines.append(f"{key}: {shown(item['input'])} is not allowed: {message[:1].lower()}{message[1:]}{hint}")
    return lines


def _unquoted(kind: str, value: Any) -> str:
    """The hint for a number that is given as text; else an empty text. kind: pydantic's type of the error."""
    number = {"int_type": r"[+-]?\d+", "float_type": r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"}.get(kind)
    if number is None or not isinstance(value, str) or not re.fullmatch(number, value, re.ASCII):
        return ""
    return f". Remedy: {short(value)} without quotes"
