"""Silence while libraries talk to themselves."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what converters and their C++ libraries print; a failure still arrives as an exception.

    The process's stderr itself is redirected, because the C++ side knows nothing of Python's.
    """
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as sink, warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            os.dup2(sink.fileno(), 2)
            yield
            sys.stderr.flush()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
