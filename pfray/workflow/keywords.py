"""Requests from Python: keywords checked by name, and errors that name keywords in place of options and overrides."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from pfray.errors import ConfigError, PfrayError
from pfray.utils.python_words import in_python_words
from pfray.utils.user_code import as_user_code_failed

P = ParamSpec("P")
T = TypeVar("T")

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
        raise ConfigError(in_python_words("\n".join(mistakes)))
    call = signature.bind(*arguments, **keywords)
    call.apply_defaults()
    return dict(call.arguments)


@contextmanager
def python_words() -> Iterator[None]:
    """Errors of the block name keywords where they name options of the command or overrides of a file. Raises
    UserCodeFailed for those that came through the user's own functions."""
    try:
        yield
    except PfrayError as error:
        text = in_python_words(str(error))
        if text == str(error):
            raise
        raise type(error)(text) from error.__cause__
    except Exception as error:
        if (failed := as_user_code_failed(error)) is None:
            raise
        raise type(failed)(in_python_words(str(failed))) from error
