"""Suppressed output of libraries."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the output of converters and their C++ libraries; failures still raise."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    # From then on also: the converters load JAX, which warns whenever Ray, or anything else, starts a process.
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
    with mute_stderr(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def mute_stderr() -> Iterator[None]:
    """Drop writes to file descriptor 2, because C++ libraries bypass Python's stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as sink:
            os.dup2(sink.fileno(), 2)
            yield
            sys.stderr.flush()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
