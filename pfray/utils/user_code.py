"""Errors of a user's own code as one line that names the file and line."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfray.errors import ConfigError, PfrayError, first_line, short

# Packages and paths that are no user's own code: pfray's, Python's library, and installed ones.
OWN_PACKAGES = {"pfray", "learners", "envs"}
_INSTALLED = ("<frozen", *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
_ROOT = Path(__file__).resolve().parents[2]
# A frame in the text of a traceback.
_FRAME = re.compile(r'^ *File "([^"\n]+)", line (\d+)', re.MULTILINE)


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


def place_in(trace: str) -> str:
    """As ``place_of``, from the text of a traceback, which may be another process's."""
    installed = (*_INSTALLED, *(f"{_ROOT}/{package}/" for package in OWN_PACKAGES))
    places = [(file, line) for file, line in _FRAME.findall(trace) if not file.startswith(installed)]
    return f" ({short(places[-1][0])}, line {places[-1][1]})" if places else ""


def place_of(error: BaseException) -> str:
    """`` (my_models.py, line 3)``: the innermost line of the traceback in a user's own code; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({short(error.filename)}, line {error.lineno})"
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in OWN_PACKAGES and not file.startswith(_INSTALLED):
            place = f" ({short(file)}, line {line})"
    return place
