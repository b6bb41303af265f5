"""Requests from Python: keywords checked by name, and errors that name keywords in place of options and overrides."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

from pfray.errors import ConfigError, PfrayError

P = ParamSpec("P")
T = TypeVar("T")

# Sections of an experiment that are keywords with a mapping of settings.
SECTIONS = "target|search|teacher|finetune|distill|export|resources|distributed"
# What a keyword that is missing may be.
EXAMPLES = {"target": 'target={"macs": "0.5x"}', "train": "train=, such as a DataLoader", "model": "a torch.nn.Module"}


def named_keywords(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, which raises ConfigError, a line each, for keywords that it does not have or that are missing."""

    @functools.wraps(function)
    def checked(*arguments: P.args, **keywords: P.kwargs) -> T:
        bound(function, arguments, keywords)
        return function(*arguments, **keywords)

    return checked


def bound(function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a call by name, defaults included. Raises ConfigError as of ``named_keywords``."""
    signature = inspect.signature(function)
    names = list(signature.parameters)
    unknown = [key for key in keywords if key not in names]
    given = {*names[: len(arguments)], *keywords}
    missing = [n for n, p in signature.parameters.items() if p.default is inspect.Parameter.empty and n not in given]
    if unknown or missing:
        from pfray.config.messages import unknown_key
        from pfray.config.schema import elsewhere

        mistakes = [unknown_key(key, key, names, elsewhere(key)) for key in unknown]
        mistakes += [f"{name}: missing. Remedy: {EXAMPLES[name]}" for name in missing]
        raise ConfigError(in_python("\n".join(mistakes)))
    call = signature.bind(*arguments, **keywords)
    call.apply_defaults()
    return dict(call.arguments)


@contextmanager
def python_words() -> Iterator[None]:
    """Errors of the block name keywords where they name options of the command or overrides of a file."""
    try:
        yield
    except PfrayError as error:
        text = in_python(str(error))
        if text == str(error):
            raise
        raise type(error)(text) from error.__cause__


def in_python(text: str) -> str:
    """The text with keywords: ``--resume`` is ``resume=True``, ``search.trials=60`` is ``search={"trials": 60}``."""
    text = text.replace("--resume", "resume=True").replace("--force", "force=True")
    text = text.replace("python -m pfray.inspect", "pfray.inspect(model, train)")
    text = re.sub(r"--warm-start (.+?)(?= to learn|$)", r'search={"warm_start": "\1"}', text)
    text = re.sub(r"--address (\S+)", r'resources={"address": "\1"}', text)
    text = re.sub(r"\btarget: \{", "target={", text)
    text = re.sub(r"\bsearch=(\w+)", r'search="\1"', text)
    text = re.sub(rf"\b({SECTIONS})\.(\w+)=([\w.%-]*\w%?)", _setting, text)
    # Of a key in the wrong place; elsewhere a quoted path is the key of a searched setting.
    lines = [
        re.sub(rf"'({SECTIONS})\.(\w+)'", r'\1={"\2": ...}', line) if ": unknown key" in line else line
        for line in text.split("\n")
    ]
    return "\n".join(lines)


def _setting(match: re.Match[str]) -> str:
    section, key, text = match.groups()
    value = f'"{text}"'
    with suppress(ValueError):
        value = repr(json.loads(text))
    return f'{section}={{"{key}": {value}}}'
