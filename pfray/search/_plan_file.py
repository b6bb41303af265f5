"""Reads a user's plan, JSON of knob name -> value, and validates it against a space."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfray.errors import nearest, shown
from pfray.space import CompressionSpace, Knob

# Maximum number of mistakes reported of one plan, and of knobs listed by name.
MAX_SHOWN = 4


def expand_home(path: str) -> Path:
    """The path with a leading ``~`` expanded; unchanged, without an error, if there is no home folder."""
    return Path(os.path.expanduser(path))


def parse_file(path: Path) -> Any:
    """Content of a JSON file. Raises ValueError with the reason: no file, no UTF-8, no JSON, or a duplicate key."""
    try:
        if not path.is_file():  # reading a pipe would block
            raise ValueError("it is no file" if path.exists() else "there is no such file")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ValueError("it is no UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg.lower()} at line {error.lineno}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def plan_mistakes(plan: Any, space: CompressionSpace) -> list[str]:
    """Mistakes of ``plan`` in this space, a few words each; empty if it is valid."""
    if not isinstance(plan, Mapping):
        return [f"{shown(plan)} is no plan, which is knob names with their values"]
    known = set(space.names)
    unknown = [name for name in plan if name not in known]
    missing = [name for name in space.names if name not in plan]
    found = [f"unknown knob {shown(name)}.{nearest(name, missing or space.names)}" for name in unknown]
    if missing:
        found.append(f"{'a value is' if len(missing) == 1 else 'values are'} missing for {_few(missing)}")
    for knob in space.knobs:
        if knob.name in plan and (allowed := _allowed_instead(plan[knob.name], knob)):
            found.append(f"{knob.name}: {shown(plan[knob.name])} is not allowed. Allowed: {allowed}")
    return found


def _allowed_instead(value: Any, knob: Knob) -> str:
    """Description of a knob's allowed values; empty if ``value`` is one."""
    low, high = sorted((knob.compressed, knob.full))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"a number from {low:g} to {high:g}"
    if not low <= value <= high:
        return f"{low:g} to {high:g}"
    if knob.choices and value not in knob.choices:
        below, above = max(c for c in knob.choices if c < value), min(c for c in knob.choices if c > value)
        return f"some values only, of which {below!r} and {above!r} are next to it"
    return "whole numbers" if knob.integer and value != round(value) else ""


def _few(names: list[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(map(shown, names[:MAX_SHOWN])) + more


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{shown(next(key for key in keys if keys.count(key) > 1))} is given twice")
    return found
