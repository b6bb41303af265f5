"""Strict YAML for experiment files: texts, numbers, booleans, lists and mappings.

Unlike PyYAML it refuses duplicate keys, keys that are not texts (``on``, ``1``), tags of other types, recursive
aliases, and anything too large or too deep for an experiment. ``1e-3`` is a number, as in YAML 1.2, and a date is a
text.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from pfray.errors import ConfigError, short, shown

# Aliases count as often as they are used.
MOST_BYTES, MOST_VALUES, DEEPEST = 1_000_000, 10_000, 30
LARGEST_INTEGER = 2**63 - 1

_TAG = "tag:yaml.org,2002:"
_TAGS = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}


def read(path: Path) -> Any:
    """The file's value. Raises ConfigError that names the file, and the line and column of the mistake."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{short(str(path))}: cannot be read ({reason}). Remedy: check the path") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(
            f"{short(str(path))}: has more than {MOST_BYTES:,} bytes. Remedy: an experiment file of a few lines"
        )
    try:
        return parse(content.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{short(str(path))}: byte {error.start + 1} is no UTF-8. Remedy: save the file as UTF-8"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{short(str(path))}: {error}. Remedy: correct the file there") from None


def parse(text: str) -> Any:
    """The value of a YAML text, without shared parts. Raises ValueError that names the mistake and its place."""
    try:
        return _unshared(yaml.load(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"not valid YAML{where} ({short(error.problem or 'cannot be read', 200)})") from None
    except yaml.reader.ReaderError as error:
        where = f" at line {text.count(chr(10), 0, error.position) + 1}"
        raise ValueError(f"not valid YAML{where} (the character U+{ord(text[error.position]):04X})") from None


def dump(plain: Any) -> str:
    """YAML that ``parse`` reads back as ``plain``."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        # Depth of the current value, greatest depth inside it so far, and number of all values so far.
        self.depth = self.deepest = self.values = 0
        # (number of values, height) of each composed node.
        self.measures: dict[yaml.Node, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()
        mark: Any = event.start_mark
        outer, before = self.deepest, self.values
        self.depth += 1
        self.deepest = self.depth
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if node is not None and node not in self.measures:
                raise ComposerError(None, None, f"the alias *{event.anchor} is inside its own value", mark)
            values, height = self.measures[node] if node is not None else (1, 0)
            self.values += values
            self.deepest += height
            self._check_size(mark)
        else:
            self.values += 1
            self._check_size(mark)
            node = super().compose_node(parent, index)
            if isinstance(node, yaml.MappingNode):
                _check_keys(node)
            if node is not None:
                self.measures[node] = (self.values - before, self.deepest - self.depth)
        self.depth -= 1
        self.deepest = max(outer, self.deepest)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # from PyYAML's calls of int and float, and its look-ups
            kind = node.tag.removeprefix(_TAG)
            raise ConstructorError(None, None, f"{shown(node.value)} is no {kind}", node.start_mark) from error
        if isinstance(value, str):
            _check_text(value, node.start_mark)
        elif isinstance(value, float) and math.isnan(value):
            raise ConstructorError(None, None, f"{shown(node.value)} is no number", node.start_mark)
        elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            problem = f"{shown(node.value)} is too large. Allowed: {-LARGEST_INTEGER} to {LARGEST_INTEGER}"
            raise ConstructorError(None, None, problem, node.start_mark)
        return value

    def _check_size(self, mark: yaml.Mark) -> None:
        if self.deepest > DEEPEST:
            raise ComposerError(None, None, f"more than {DEEPEST} values inside one another", mark)
        if self.values > MOST_VALUES:
            raise ComposerError(None, None, f"more than {MOST_VALUES} values, aliases included", mark)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag in _TAGS or tag == f"{_TAG}merge"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_exponent = (f"{_TAG}float", re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"))
for _first in "-+.0123456789":
    _resolvers[_first] = [*_resolvers.get(_first, []), _exponent]
_Loader.yaml_implicit_resolvers = _Dumper.yaml_implicit_resolvers = _resolvers
_Loader.yaml_constructors = {
    tag: constructor for tag, constructor in yaml.SafeLoader.yaml_constructors.items() if tag in _TAGS or tag is None
}


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag not in (f"{_TAG}str", f"{_TAG}merge") or not isinstance(key, yaml.ScalarNode):
            what = f"the key {shown(key.value)}" if isinstance(key, yaml.ScalarNode) else "a key"
            problem = f"{what} is of the type {key.tag.removeprefix(_TAG)} and not a text: put it in quotes"
            raise ComposerError(None, None, problem, key.start_mark)
        if key.value in lines:
            problem = f"the key {shown(key.value)} is given twice, first in line {lines[key.value]}: keep one"
            raise ComposerError(None, None, problem, key.start_mark)
        lines[key.value] = key.start_mark.line + 1


def _check_text(text: str, mark: yaml.Mark) -> None:
    encoding = sys.getfilesystemencoding()
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        remedy = "" if encoding == "utf-8" else ": set PYTHONUTF8=1"
        problem = f"{shown(text)} cannot be written in {encoding}, this machine's encoding{remedy}"
        raise ConstructorError(None, None, problem, mark) from None
    if "\0" in text:
        raise ConstructorError(None, None, f"{shown(text)} holds the character U+0000", mark)


def _unshared(value: Any) -> Any:
    """A copy in which former aliases can be changed separately."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value
