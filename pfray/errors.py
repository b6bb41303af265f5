"""Errors for users. Each message is one line that names the value, the allowed range and the remedy."""

from __future__ import annotations

import difflib
import re
import reprlib
import sys
from collections.abc import Iterable

# Most characters of a user's value, of a quoted library message and of a whole line; most lines of an error.
VALUE, QUOTED, LINE, LINES = 100, 300, 1000, 20

# Similarity (``difflib``) from which another name may be meant, and from which it is; letters of a word's stem, and of
# an abbreviation.
LIKELY, CERTAIN, STEM, ABBREVIATION = 0.6, 0.8, 4, 3

# Control sequences of a terminal: colours, cursor movements, links.
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")

# For every refusal by a cluster that wants its token.
TOKEN_REMEDY = (
    "Remedy: RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN, in a file named by RAY_AUTH_TOKEN_PATH, "
    "or in ~/.ray/auth_token"
)


class PfrayError(Exception):
    """Base of all errors shown without a traceback. ``exit_code``: 2 for a wrong request, 1 for a failed run."""

    exit_code = 2


class ConfigError(PfrayError):
    """The experiment file or its overrides are wrong. One line per mistake."""


class DataError(PfrayError):
    """A data set is missing, damaged, or not of the promised form."""


class WeightsError(PfrayError):
    """A state-dict file is missing, damaged, or belongs to another architecture."""


class UnsupportedModel(PfrayError):
    """The model cannot run on the data, or the learner finds nothing in it to compress."""


class InfeasibleTarget(PfrayError):
    """No plan reaches the target."""


class RunExists(PfrayError):
    """The run folder holds a run that this command would overwrite or that does not match it."""


class StorageError(PfrayError):
    """A folder or file cannot be written or read."""

    exit_code = 1


class ClusterError(PfrayError):
    """Ray does not start, or a cluster does not answer, refuses access or rejects a request."""

    exit_code = 1


class UnknownJob(PfrayError):
    """A cluster knows no job of that id."""


class TrainingFailed(PfrayError):
    """Training diverged (NaN or infinite loss), or its workers failed too often."""

    exit_code = 1


class UserCodeFailed(PfrayError):
    """A model, data set, loss or other code of the user's own raised an exception in the middle of a run."""

    exit_code = 1


class SearchFailed(PfrayError):
    """No trial of the search gave a usable score."""

    exit_code = 1


class ExportError(PfrayError):
    """The model cannot be exported, or the exported file does not reproduce it."""

    exit_code = 1


class GoalMissed(PfrayError):
    """The run is complete and its files are written, but the result misses ``target.max_drop`` or ``latency_ms``."""

    exit_code = 1


def print_error(error: PfrayError) -> int:
    """Print each line of the error on stderr, shortened and escaped. Returns the exit code."""
    lines = [line for line in str(error).split("\n") if line.strip()] or [type(error).__name__]
    for line in lines[:LINES]:
        print(f"error: {short(line, LINE)}", file=sys.stderr)
    if len(lines) > LINES:
        print(f"error: {len(lines) - LINES} more mistakes are not shown", file=sys.stderr)
    return error.exit_code


def shown(value: object) -> str:
    """The ``repr`` of a user's value for a message: one line of bounded length. Never raises."""
    try:
        return short(_SHORT.repr(value))
    except Exception:  # a repr of the user's own, or an integer of too many digits
        return f"<{type(value).__name__}>"


def short(text: str, most: int = VALUE) -> str:
    """``text`` on one line, its middle left out beyond ``most`` characters.

    Control characters, line ends, bidirectional marks and lone surrogates become escapes: a terminal would obey them,
    or fail to print them.
    """
    if len(text) > most:
        head = 2 * most // 3
        text = f"{text[:head]} ... {text[len(text) - (most - head - 5) :]}"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def first_line(error: BaseException) -> str:
    """First line of an error's text, or its type if the text is empty."""
    try:
        text = str(error).strip()
    except Exception:  # a user's own class of errors
        text = ""
    # Libraries colour their messages.
    return short(_TERMINAL.sub("", text.split("\n")[0]).strip(), QUOTED) or type(error).__name__


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = VALUE
_SHORT.maxlevel = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest known name; an empty text if none is close.

    A name that continues ``name`` comes first, then a slip of the pen, then a name that has a word of ``name``
    (``channel_pruned`` for ``prune``).
    """
    known, own = list(known), _plain(name[:100])  # the matcher's time grows with the square of the length
    continued = [each for each in known if own and _plain(each).startswith(own)]
    known = continued or known
    cutoff = 0 if continued and len(own) >= ABBREVIATION else LIKELY
    close = difflib.get_close_matches(own, [_plain(each) for each in known], n=1, cutoff=cutoff)
    if not close or _similarity(own, close[0]) < CERTAIN:
        related = (each for each in map(_plain, known) if _share_a_word(own, each))
        close = [found] if (found := next(related, None)) else close
    meant = [each for each in known if _plain(each) == close[0]] if close else []
    return f" Did you mean '{max(meant, key=lambda each: _similarity(name[:100], each))}'?" if meant else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def _similarity(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name, other).ratio()


def _share_a_word(name: str, other: str) -> bool:
    return any(_related(a, b) for a in name.split("_") for b in other.split("_"))


def _related(word: str, other: str) -> bool:
    """True for two forms of one word, such as ``pruning`` and ``pruned``: most of the shorter one is common."""
    shorter = min(len(word), len(other))
    common = next((place for place in range(shorter) if word[place] != other[place]), shorter)
    return common >= STEM and common >= LIKELY * shorter
