"""Raw experiment files: YAML read with its includes, later mappings laid over earlier ones, ``key=value`` on top."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pfray.errors import ConfigError


def read_with_includes(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's mapping over those of its ``include:`` list, whose paths are relative to the file."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: includes itself. Remedy: remove it from one of the include lists")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Remedy: check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}: not valid YAML{where}. Remedy: correct the syntax there") from None
    if raw is None:
        raise ConfigError(f"{path}: the file is empty. Remedy: give at least model, data, learner and target")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds a {type(raw).__name__}, not a mapping. Remedy: write lines of 'key: value'")
    includes = raw.pop("include", [])
    if not isinstance(includes, list) or not all(isinstance(item, str) for item in includes):
        raise ConfigError(f"{path}: include is {includes!r}, not a list of file names")
    merged: dict[str, Any] = {}
    for item in includes:
        merged = merge(merged, read_with_includes(path.parent / item, (*seen, path.resolve())))
    return merge(merged, raw)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    _make_way(merged, over)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def set_key(raw: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """``raw`` with ``value`` at the end of ``keys``; an entry of a list goes by its name, or by its place from 0."""
    inner: Any = raw
    for depth, key in enumerate(keys):
        place: Any = key
        if isinstance(inner, list):
            place = _place(inner, key, ".".join(keys[:depth]))
        elif not isinstance(inner, dict):
            raise ValueError(f"{'.'.join(keys[:depth])} is {inner!r}, not a mapping")
        if depth == len(keys) - 1:
            break
        if isinstance(inner, dict):
            inner.setdefault(place, {})
        # 'learner: weight_sparse' is short for a mapping, which an override may add to.
        if isinstance(inner[place], str):
            inner[place] = {"name": inner[place]}
        inner = inner[place]
    if isinstance(inner, dict):
        _make_way(inner, keys[-1:])
    inner[place] = value


def _place(entries: Sequence[Any], key: str, where: str) -> int:
    given = [entry.get("name", entry.get("factory")) if isinstance(entry, dict) else entry for entry in entries]
    # Of an import path, my_package.prune:Prune, the last part: the keys of an override end at dots.
    names = [str(name).rpartition(":")[2] for name in given]
    if key.isdecimal() and int(key) < len(entries):
        return int(key)
    if names.count(key) == 1:
        return names.index(key)
    several = f"has several entries named {key!r}" if key in names else f"has no entry {key!r}"
    raise ValueError(f"{where} {several}. Allowed: {', '.join(names)}, or 0 to {len(names) - 1}")


def _make_way(base: dict[str, Any], over: Collection[str]) -> None:
    """A ``factory`` on top replaces a ``name`` below it, and the other way round: they name the same thing."""
    for key, other in (("factory", "name"), ("name", "factory")):
        if key in over and other not in over:
            base.pop(other, None)
