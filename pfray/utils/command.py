"""Behaviour that all commands share: their help, and one line for an error, a signal or a closed output.

Imports little, because ``begin`` is called before a program's own imports, which take seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import re
import shlex
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from pfray.errors import ConfigError, PfrayError, StorageError, print_error, short

# Ctrl-C, and the signal that clusters and ``timeout`` send.
STOPS = (signal.SIGINT, signal.SIGTERM)
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)


class _Program:
    """This process. pid: of the process that called ``begin``. taken: the signals that pfray handles.

    then: what the user can do after an interruption. catches: True while ``run_command`` would see an exception.
    """

    pid = 0
    taken: tuple[signal.Signals, ...] = ()
    then = ""
    catches = False
    stopped_by: int | None = None


def begin(then: str = "") -> None:
    """Handle signals, and a standard output that nobody reads, from now on. A program calls this first."""
    _Program.pid, _Program.then = os.getpid(), then
    # A shell may have programs in the background ignore Ctrl-C.
    _Program.taken = tuple(stop for stop in STOPS if signal.getsignal(stop) is not signal.SIG_IGN)
    take_signals()
    sys.stdout, sys.stderr = _unbreakable(sys.stdout), _unbreakable(sys.stderr)


def resume_hint(program: str, arguments: Sequence[str]) -> str:
    """Command that continues the run that ``program`` starts with these arguments; empty if they start none.

    Possible secrets in a URL are hidden, because an interruption can come before they are refused.
    """
    if {"--show", "--check"} & set(arguments):
        return ""
    kept = [re.sub("//[^/@]+@", "//***@", text) for text in arguments if text not in ("--resume", "--force")]
    return f"Continue with: {program} {shlex.join(kept)} --resume"


def run_command(action: Callable[[], int], arguments: Sequence[str], then: str = "") -> int:
    """Exit code of ``action``, or 2 or 1 after the lines of its error.

    An interruption ends the process with 130 (Ctrl-C) or 143 (SIGTERM). then: what the user can do after it.
    """
    _Program.then, _Program.catches = then, True
    try:
        _check_names(arguments)
        return action()
    except KeyboardInterrupt:
        _leave()
    except PfrayError as error:
        return print_error(error)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        what = f"{error.filename or 'a file'} cannot be written ({error.strerror})"
        return print_error(StorageError(f"{what}. Remedy: free space or permission there. {then}".rstrip(". ")))
    except (Exception, SystemExit) as error:
        # Imported here, because ``pfray.bench`` is also used without the rest of the package.
        from pfray.utils.user_code import as_user_code_failed

        if (failed := as_user_code_failed(error)) is None:
            raise
        return print_error(failed)
    finally:
        _Program.catches = False


def make_parser(program: str, description: str, examples: Sequence[str], more: str = "") -> argparse.ArgumentParser:
    """Parser of a command. examples: arguments of ``program``. more: paragraphs at the end of the help."""
    lines = "\n".join(f"  {program} {example}" for example in examples)
    return argparse.ArgumentParser(
        prog=program,
        description=textwrap.fill(description, 100),
        epilog=f"examples:\n{lines}" + (f"\n\n{more}" if more else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def take_signals() -> None:
    """Handle the signals again, whoever took them since ``begin``; C++ libraries do so behind Python's back."""
    if _Program.pid == os.getpid():
        for stop in _Program.taken:
            signal.signal(stop, _stop)


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Keep the signals while the block calls a library that would take them."""
    set_handler = signal.signal

    def keep(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number in _Program.taken else set_handler(number, handler)

    signal.signal = keep  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = set_handler
        take_signals()


def _stop(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _Program.pid:  # a fork has work of its own
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    again, _Program.stopped_by = _Program.stopped_by is not None, _Program.stopped_by or number
    if not _Program.catches:
        _leave()
    # ``timeout`` sends SIGTERM twice, to the process and to its group.
    if number == signal.SIGINT or not again:
        raise KeyboardInterrupt


def _leave() -> NoReturn:
    """End at once. Python would first wait for threads, which may wait for Ray; all results are on disk."""
    for stop in _Program.taken:
        signal.signal(stop, signal.SIG_IGN)
    text = f"interrupted. {_Program.then}".rstrip(". ")
    # The interrupted code may be writing to the same streams.
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(sys.stderr.encoding if sys.stderr else "utf-8", "backslashreplace"))
    os._exit(128 + (_Program.stopped_by or signal.SIGINT))


class _Outlet(io.FileIO):
    """Standard stream that drops its input once nobody reads it: a closed pipe must not end a run half-way."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal is gone
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # for libraries that write to the descriptor
        os.close(nowhere)
        if self.fileno() == 1:
            print("note: standard output is closed; the command goes on without it", file=sys.stderr)
        return len(data)


def _unbreakable(stream: Any) -> Any:
    """The standard stream as an outlet, which writes characters that its encoding lacks as escapes."""
    if not isinstance(stream, io.TextIOWrapper):  # it is closed, or somebody else's already
        return stream
    stream.flush()
    raw = _Outlet(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding, errors="backslashreplace", line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )  # fmt: skip


def _check_names(arguments: Sequence[str]) -> None:
    """Raise ConfigError for names that the locale's encoding lacks, which libraries could not open."""
    encoding = sys.getfilesystemencoding()
    try:
        here = os.getcwd()
    except OSError as error:
        raise ConfigError(f"the working directory is gone ({error.strerror}). Remedy: cd to another") from None
    for text in (*arguments, here):
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            name = short(os.fsencode(text).decode("utf-8", "backslashreplace"))
            raise ConfigError(
                f"'{name}' is no name in {encoding}, this machine's encoding. Remedy: PYTHONUTF8=1 in the "
                "environment, or another name"
            ) from None
