"""Errors of a training's workers, as one line for the user; the traceback is kept in the training's folder."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import ray

from pfray.errors import PfrayError, StorageError, TrainingFailed, UserCodeFailed, first_line
from pfray.storage.run_folder import traceback_of
from pfray.utils.files import write_atomically


def as_pfray_error(error: Exception, folder: Path) -> PfrayError:
    """The cause in a worker, in one line. The traceback of a failed training is kept in its ``folder``."""
    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    cause = causes[0]
    # Ray wraps an error in another of the same class.
    while isinstance(cause, ray.exceptions.RayTaskError) or not isinstance(cause, PfrayError):
        if (deeper := getattr(cause, "cause", None) or cause.__cause__) is None:
            break
        cause = deeper
    if isinstance(cause, PfrayError) and not isinstance(cause, UserCodeFailed):
        return cause
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{cause.filename or 'a checkpoint'} cannot be written ({cause.strerror}). Remedy: free "
                            "space there, then continue with --resume")  # fmt: skip
    keep_traceback(error, folder)
    if isinstance(cause, UserCodeFailed):
        return UserCodeFailed(f"{cause}; the traceback is in {traceback_of(folder)}")
    return TrainingFailed(
        f"training failed: {type(cause).__name__}: {first_line(cause).rstrip('.')}. Remedy: mend the cause and run "
        f"again; the traceback is in {traceback_of(folder)}"
    )


def keep_traceback(error: Exception, folder: Path) -> None:
    """The traceback in Ray's worker, as a file in the training's folder."""
    trace = re.sub(r"\x1b\[[0-9;]*m", "", str(getattr(error, "traceback_str", None) or error))
    write_atomically(traceback_of(folder), trace)
