"""The run folder: one run's files, made, checked and resumed."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from pfray import config
from pfray.bucket import is_url
from pfray.cache import cache_dir, content_key
from pfray.config import Experiment
from pfray.errors import RunExists, StorageError
from pfray.files import write_atomically
from pfray.paths import refuse_links_outside

# A run is finished when this file is there; it is the last thing written but for the report.
SUMMARY = "summary.json"


def storage_folder(experiment: Experiment) -> Path:
    """Where the run's folder is on this machine: for a storage that is a URL, in the cache."""
    if is_url(experiment.storage):
        return cache_dir() / "runs" / content_key(experiment.storage)
    return Path(experiment.storage).expanduser().resolve()


def title(experiment: Experiment) -> str:
    """What the user knows the run's folder by."""
    if is_url(experiment.storage):
        return f"{experiment.storage}/{experiment.name}"
    return str(storage_folder(experiment) / experiment.name)


def check_folder(experiment: Experiment, *, resume: bool, force: bool) -> Path:
    """The run's folder, looked at and not touched. Raises RunExists where a run there would mix files or be lost."""
    folder = storage_folder(experiment) / experiment.name
    saved = folder / "experiment.yaml"
    if saved.exists():
        if resume:
            refuse_links_outside(folder)
            _check_same(saved, experiment)
        elif not force:
            state = "finished" if is_finished(folder) else "unfinished"
            raise RunExists(
                f"{title(experiment)} holds a run, {state}. "
                "Remedy: --resume to continue it, --force to replace it, or name=..."
            )
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        # Such files would be taken for an earlier session's, or be lost to a later --force.
        raise RunExists(f"{folder} holds files but no run. Remedy: move them away, or name=... for another folder")
    return folder


def open_folder(experiment: Experiment, *, resume: bool, force: bool) -> Path:
    """The run's folder, ready to work in; with ``force`` an earlier run is gone. Raises RunExists, StorageError."""
    folder = check_folder(experiment, resume=resume, force=force)
    saved = folder / "experiment.yaml"
    try:
        if force and saved.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(saved, config.dump(experiment))
        (folder / "search").mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the run folder {folder} cannot be written ({error.strerror or error}). "
            "Remedy: choose another with storage=..."
        ) from error
    return folder


@contextlib.contextmanager
def alone(experiment: Experiment) -> Iterator[None]:
    """Nobody else works in the run's folder during the block; the system lets go of it however this process ends.

    Raises RunExists where another process is at work there, StorageError where the storage folder cannot be written.
    """
    storage = storage_folder(experiment)
    try:
        storage.mkdir(parents=True, exist_ok=True)
        # Beside the folder and not in it, because --force removes the folder.
        lock = FileLock(storage / f".{experiment.name}.lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise RunExists(
            f"{title(experiment)} is in use by another process. Remedy: wait for it or stop it, or name=..."
        ) from None
    except OSError as error:
        raise StorageError(
            f"the folder {storage} cannot be written ({error.strerror or error}). "
            "Remedy: choose another with storage=..."
        ) from error
    with lock:
        yield


def is_finished(folder: Path) -> bool:
    return (folder / SUMMARY).exists()


def read_seconds(folder: Path) -> dict[str, float]:
    """Seconds each stage took in earlier sessions of this run."""
    path = folder / "seconds.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_seconds(folder: Path, seconds: dict[str, float]) -> None:
    write_atomically(folder / "seconds.json", json.dumps(seconds))


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """The run's result; writing it is what finishes the run."""
    write_atomically(folder / SUMMARY, json.dumps(summary, indent=2))


def _check_same(saved: Path, experiment: Experiment) -> None:
    """What may differ when a run is continued is where it runs and on how much, not what it computes."""
    old, new = yaml.safe_load(saved.read_text()), yaml.safe_load(config.dump(experiment))
    for raw in (old, new):
        raw["resources.precision"] = raw.pop("resources")["precision"]
    changed = [key for key in new if key != "storage" and old.get(key) != new[key]]
    if changed:
        raise RunExists(
            f"{title(experiment)} holds a run of another experiment; these differ: {', '.join(changed)}. "
            "Remedy: resume with the same file and overrides, use --force to replace it, or name=..."
        )
