"""Experiment files as plain data: YAML merged with its includes, then ``key=value`` overrides."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pfray.config import strict_yaml
from pfray.errors import ConfigError, short, shown

# Most files of one experiment, each counted as often as it is included.
MOST_FILES = 100


def read_with_includes(path: Path) -> dict[str, Any]:
    """The file's mapping, merged over the files of its ``include:`` list. Their paths are relative to the file.

    Raises ConfigError for a file that cannot be read.
    """
    return _read(path, (), [])


def _read(path: Path, outer: tuple[str, ...], all_read: list[str]) -> dict[str, Any]:
    """outer: the files that include this one. all_read: every file so far."""
    raw = strict_yaml.read(path)
    named = short(str(path))
    own = os.path.realpath(path)
    if own in outer:
        raise ConfigError(f"{named}: includes itself. Remedy: remove it from one of the include lists")
    all_read.append(own)
    if len(all_read) > MOST_FILES:
        raise ConfigError(f"{named}: more than {MOST_FILES} files are included. Remedy: fewer, larger ones")
    if raw is None:
        raise ConfigError(f"{named}: the file is empty. Remedy: give at least model, data, learner and target")
    if not isinstance(raw, dict):
        raise ConfigError(f"{named}: holds a {type(raw).__name__}, not a mapping. Remedy: write lines of 'key: value'")
    includes = raw.pop("include", [])
    if not isinstance(includes, list) or not all(isinstance(item, str) for item in includes):
        raise ConfigError(
            f"{named}: include is {shown(includes)}, not a list of file names. Example: include: [common.yaml]"
        )
    merged: dict[str, Any] = {}
    for item in includes:
        merged = merge(merged, _read(path.parent / item, (*outer, own), all_read))
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
    """Set ``value`` at the path ``keys`` of ``raw``. An entry of a list goes by its name, or by its index from 0.

    Raises ValueError for a path that does not exist.
    """
    if len(keys) > strict_yaml.DEEPEST:
        raise ValueError(f"more than {strict_yaml.DEEPEST} keys inside one another")
    inner: Any = raw
    for depth, key in enumerate(keys):
        place: Any = key
        if isinstance(inner, list):
            place = _place(inner, key, ".".join(keys[:depth]))
        elif not isinstance(inner, dict):
            raise ValueError(f"{short('.'.join(keys[:depth]))} is {shown(inner)}, not a mapping")
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
    # The last part of an import path my_package.prune:Prune, because dots separate the keys of an override.
    names = [str(name).rpartition(":")[2] for name in given]
    if key.isdecimal() and len(key) < 6 and int(key) < len(entries):
        return int(key)
    if names.count(key) == 1:
        return names.index(key)
    several = f"has several entries named {shown(key)}" if key in names else f"has no entry {shown(key)}"
    raise ValueError(f"{where} {several}. Allowed: {short(', '.join(names))}, or 0 to {len(names) - 1}")


def _make_way(base: dict[str, Any], over: Collection[str]) -> None:
    """Remove ``name`` from ``base`` if ``over`` has ``factory``, and vice versa: both name the component."""
    for key, other in (("factory", "name"), ("name", "factory")):
        if key in over and other not in over:
            base.pop(other, None)
