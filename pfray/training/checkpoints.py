"""Checkpoints of unfinished trainings: written whole, and checked before they are loaded."""

from __future__ import annotations

import io
import json
import logging
import shutil
import zipfile
from pathlib import Path
from typing import Any

import ray
import torch

from pfray.errors import StorageError, first_line
from pfray.utils.files import write_atomically

STATE = "state.pt"
# State of a worker's gradient exchange.
EXCHANGE = "exchange-{rank}.pt"
# Ray Train's list of its checkpoints.
SNAPSHOT = "checkpoint_manager_snapshot.json"
ENTRIES = {"model", "epoch", "loss", "optimizer", "hook", "average", "made_from"}


class Damaged(StorageError):
    """A checkpoint that a training cannot continue from."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the state whole. Raises StorageError."""
    # To memory first, because torch's own writer does not name a full disk as the cause.
    torch.save(state, content := io.BytesIO())
    write_atomically(path, content.getvalue())


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state that ``save`` wrote. Raises Damaged."""
    try:
        content = io.BytesIO(path.read_bytes())
        # torch ignores the archive's checksums.
        with zipfile.ZipFile(content) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise _damaged(path, f"the checksum of {broken} is wrong")
        content.seek(0)
        state = torch.load(content, weights_only=True, map_location=device)
    except Damaged:
        raise
    except Exception as error:  # torch raises many types for a damaged file
        raise _damaged(path, first_line(error)) from error
    if not isinstance(state, dict):
        raise _damaged(path, "it holds no state")
    return state


def load_training(path: Path, made_from: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A training's state after an epoch. Raises Damaged, also for a state of another ``made_from``."""
    state = load(path, device)
    if not state.keys() >= ENTRIES or not isinstance(state["epoch"], int):
        raise _damaged(path, "it holds no state of a training")
    if state["made_from"] != made_from:
        raise _damaged(path, "it was made from another plan or other settings")
    return state


def _damaged(path: Path, why: str) -> Damaged:
    return Damaged(f"{path} cannot be used ({why}). Remedy: --resume, with which this training begins anew")


def epochs_done(folder: Path, made_from: str, *, alone: bool) -> int:
    """Epochs done in the checkpoint that the training in ``folder`` continues from; a damaged folder is emptied.

    Ray Train's own files, used with several workers, may be damaged by a power cut: they are not synchronized to disk,
    and its list of them is written in place. The training then starts over instead of failing at every resume. alone:
    True for one worker. Raises StorageError if the folder cannot be emptied.
    """
    path = folder / (STATE if alone else SNAPSHOT)
    if not path.exists():
        return 0
    try:
        return load_training(path, made_from)["epoch"] if alone else _check_snapshot(path, made_from)
    except Damaged as error:
        logging.getLogger("pfray").warning("%s; this training begins anew", str(error).partition(". Remedy")[0])
    try:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    except OSError as error:
        raise StorageError(f"{folder} cannot be emptied ({error.strerror}). Remedy: remove it") from error
    return 0


def _check_snapshot(path: Path, made_from: str) -> int:
    """Epochs done in Ray Train's last checkpoint. Raises Damaged, also if Ray itself would refuse its list."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["ray_version"] != ray.__version__:
            raise _damaged(path, f"it is of Ray {str(known['ray_version'])[:20]}, here is {ray.__version__}")
        _parse_as_ray(known)
        names = [entry["checkpoint_dir_name"] for entry in known["checkpoint_results"]]
        if missing := [name for name in names if not (path.parent / name).is_dir()]:
            raise _damaged(path, f"{missing[0]} is missing")
        if (latest := known["latest_checkpoint_result"]) is None:
            return 0
        if latest["checkpoint_dir_name"] not in names:
            raise _damaged(path, "the last checkpoint is missing")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {first_line(error)}") from error
    folder = path.parent / latest["checkpoint_dir_name"]
    for own in folder.glob(EXCHANGE.format(rank="*")):
        load(own)
    return load_training(folder / STATE, made_from)["epoch"]


def _parse_as_ray(snapshot: dict[str, Any]) -> None:
    try:
        from ray.train.v2._internal.execution.checkpoint import checkpoint_manager
    except ImportError:  # another version of Ray, which reports its own errors
        return
    checkpoint_manager._CheckpointManagerState(**snapshot)
