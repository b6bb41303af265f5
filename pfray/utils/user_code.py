"""Errors of a user's own code as one line that names the file and line."""

from __future__ import annotations

import errno
import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pfray.errors import ConfigError, PfrayError, UserCodeFailed, first_line, short

# Files that are no user's own: pfray's, Python's library, installed packages, and generated code.
_ROOT = Path(__file__).parents[2]
_OWN = tuple(f"{_ROOT / package}{os.sep}" for package in ("pfray", "learners", "envs"))
_STANDARD = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_INSTALLED = ("site-packages", "dist-packages")
_TYPED_IN = ("<ipython", "<stdin>")
# What a loss or metric that is an object is called by.
_METHODS = ("forward", "update", "__call__")


@contextmanager
def user_code(what: str, remedy: str) -> Iterator[None]:
    """Turn exceptions of a user's code in the block, SystemExit included, into ConfigErrors with file and line.

    PfrayErrors and KeyboardInterrupt pass unchanged.
    """
    try:
        yield
    except (PfrayError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # The text of a ValueError or TypeError explains a wrong setting; for other errors the type says the most.
        kind = "" if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: "
        reason = f"{kind}{first_line(error).rstrip('.')}{place_of(error)}"
        raise ConfigError(f"{what}: {reason}. Remedy: {remedy}") from error


@contextmanager
def failing_user_code() -> Iterator[None]:
    """Turn exceptions that a user's code raises in the block into UserCodeFailed with file and line; others pass."""
    try:
        yield
    except (PfrayError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if (failed := as_user_code_failed(error)) is None:
            raise
        raise failed from error


def as_user_code_failed(error: BaseException) -> UserCodeFailed | None:
    """The error for an exception that came through a user's own code; None if it did not, or is not that code's fault.
    """
    if not place_of(error) or _ran_out(error):
        return None
    return UserCodeFailed(f"{_reason(error)}. Remedy: mend the code there, then begin anew with --force")


@contextmanager
def failing_function(kind: str, function: object, about: str = "") -> Iterator[None]:
    """Turn exceptions of a task's function, whoever's code raises them, into UserCodeFailed.

    kind: the task's field, such as ``loss``. about: what the function is called with, for the message.
    """
    try:
        yield
    except (PfrayError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if _ran_out(error):
            raise
        what = failed_call(kind, function, about, error)
        raise UserCodeFailed(f"{what}. Remedy: mend it, then begin anew with --force") from error


def failed_call(kind: str, function: object, about: str, error: BaseException) -> str:
    """``loss=mine fails on ...: ValueError: ... (mine.py, line 3)``."""
    # One place is enough: where the error was raised, if that is the user's own code.
    name = called(function).partition(" (")[0] if place_of(error) else called(function)
    return f"{kind}={name} fails{about}: {_reason(error)}"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error).rstrip('.')}{place_of(error)}"


def _ran_out(error: BaseException) -> bool:
    """True where memory or space on a disk ran out, which is no code's fault."""
    text = first_line(error).lower()
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


def place_of(error: BaseException) -> str:
    """`` (my_models.py, line 3)``: the innermost line of the traceback in a user's own code; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({short(error.filename)}, line {error.lineno})"
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not _is_installed(file):
            place = f" ({short(file)}, line {line})"
    return place


def called(function: object) -> str:
    """``my_loss (mine.py, line 3)``: name and place of a user's function, or of an object whose class is theirs; the
    name alone for those of libraries.
    """
    while isinstance(function, partial):
        function = function.func
    name = short(str(getattr(function, "__name__", type(function).__name__)).strip("<>"))
    for each in (function, *(getattr(type(function), method, None) for method in _METHODS)):
        code = getattr(each, "__code__", None)
        if code is not None and not _is_installed(code.co_filename):
            return f"{name} ({short(code.co_filename)}, line {code.co_firstlineno})"
    return name


def _is_installed(file: str) -> bool:
    if file.startswith("<"):
        return not file.startswith(_TYPED_IN)
    return file.startswith((*_OWN, *_STANDARD)) or any(folder in Path(file).parts for folder in _INSTALLED)
