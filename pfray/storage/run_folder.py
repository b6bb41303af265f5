"""The run folder: one run's files, made, checked and resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pfray.config import schema, strict_yaml
from pfray.config.schema import Experiment
from pfray.errors import RunExists, StorageError
from pfray.storage.identity import differences
from pfray.utils.cache import cache_dir, content_key
from pfray.utils.files import read_json, write_atomically, write_json
from pfray.utils.safe_paths import refuse_links_outside
from pfray.utils.url import is_url

# A run is finished when this file is there; it is the last thing written but for the report.
SUMMARY = "summary.json"
# What the run began with (``identity.py``), and checksums of the files of a finished run.
IDENTITY, CHECKSUMS = "identity.json", "checksums.json"
FOLDERS = ("search", "rescore", "training", "events", "tune")
SUFFIXES = (".json", ".jsonl", ".yaml", ".html", ".safetensors", ".pt", ".pt2", ".packed", ".tflite", ".pkl")


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


def check_folder(
    experiment: Experiment, *, resume: bool, force: bool, identity: Mapping[str, Any] | None = None
) -> Path:
    """The run's folder, looked at and not touched.

    identity: what the run to continue has to have begun with; None where only the experiment is compared.
    Raises RunExists where a run there would mix files or be lost, StorageError where it cannot be read.
    """
    folder = storage_folder(experiment) / experiment.name
    saved = folder / "experiment.yaml"
    if saved.exists():
        if resume:
            refuse_links_outside(folder)
            _check_kinds(folder)
            _check_same(saved, experiment, identity)
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


def open_folder(
    experiment: Experiment, *, resume: bool, force: bool, identity: Mapping[str, Any] | None = None
) -> Path:
    """The run's folder, ready to work in; with ``force`` an earlier run is gone, and so is a result that is damaged.

    Raises RunExists, StorageError.
    """
    folder = check_folder(experiment, resume=resume, force=force, identity=identity)
    saved = folder / "experiment.yaml"
    try:
        if force and saved.exists():
            shutil.rmtree(folder)
        if saved.exists() and _differing(saved, experiment) != []:  # and yet the run is known to be of it
            logging.getLogger("pfray").warning("%s is damaged; it is written again", saved)
        # Tune's own record of an earlier session is never read, and what is damaged in it would be in the way.
        shutil.rmtree(folder / "tune", ignore_errors=True)
        (folder / SUMMARY).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(saved, schema.dump(experiment))
        if identity is not None:
            write_json(folder / IDENTITY, {**identity, "experiment": _experiment_key(experiment)})
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


def damaged(folder: Path) -> str | None:
    """What is wrong with the files of a finished run, in a few words; None for nothing."""
    known = read_json(folder / CHECKSUMS)
    if known is None:
        return f"{folder / CHECKSUMS} is missing or damaged"
    wrong = [name for name, checksum in known.items() if _file_checksum(folder / name) != checksum]
    return f"{folder / wrong[0]} is missing or damaged" if wrong else None


def read_seconds(folder: Path) -> dict[str, float]:
    """Seconds each stage took in earlier sessions of this run."""
    path = folder / "seconds.json"
    seconds = read_json(path)
    if seconds is None and path.exists():
        logging.getLogger("pfray").warning("%s is damaged; the time of earlier sessions is not counted", path)
    return seconds or {}


def write_seconds(folder: Path, seconds: dict[str, float]) -> None:
    write_json(folder / "seconds.json", seconds)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """The run's result; writing it is what finishes the run."""
    content = json.dumps(summary, indent=2).encode()
    # Written before the summary, so that no finished run is without them.
    files = [*folder.glob("*"), *folder.glob("search/*"), *folder.glob("rescore/*")]
    names = [path.relative_to(folder).as_posix() for path in files if path.is_file() and path.name[0] != "."]
    later = {SUMMARY, CHECKSUMS, "report.html", "seconds.json"}
    checksums = {name: _file_checksum(folder / name) for name in sorted(set(names) - later)}
    write_json(folder / CHECKSUMS, {**checksums, SUMMARY: hashlib.sha256(content).hexdigest()})
    write_atomically(folder / SUMMARY, content)


def _file_checksum(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _check_kinds(folder: Path) -> None:
    """Raise StorageError for a folder in the place of a file, and the other way round."""
    folders = [*(folder / name for name in FOLDERS), *folder.glob("training/[!.]*")]
    wrong = [path for path in folders if path.suffix not in SUFFIXES and path.exists() and not path.is_dir()]
    if wrong:
        raise StorageError(f"{wrong[0]} is no folder, as a run has it. Remedy: remove it, then continue with --resume")
    inside = [path for path in folder.rglob("*") if "tune" not in path.relative_to(folder).parts]
    if others := [path for path in inside if path.suffix in SUFFIXES and not path.is_file()]:
        raise StorageError(f"{others[0]} is no file, as a run has it. Remedy: remove it, then continue with --resume")


def _check_same(saved: Path, experiment: Experiment, identity: Mapping[str, Any] | None) -> None:
    """Raise RunExists where the run to continue is one of another experiment, model, data, code or pfray."""
    remedy = (
        "Remedy: resume with what it began with, use --force to replace it, or name=... "
        f"with --warm-start {saved.parent} to learn from its trials"
    )
    known = read_json(saved.parent / IDENTITY)
    if known is None or known.get("experiment") != _experiment_key(experiment):
        _compare(saved, experiment, remedy)
    if identity is None:
        return
    if known is None:
        # Killed before its first result it has nothing that could be mixed with another's.
        if any((saved.parent / name).exists() for name in ("search/trials.jsonl", "training", "teacher.safetensors")):
            raise RunExists(
                f"{title(experiment)} holds a run of an earlier version of pfray, or its {IDENTITY} is missing or "
                f"damaged: whether model, data and code are still the same cannot be told. {remedy}"
            )
        return
    if changed := differences(known, identity):
        raise RunExists(f"{title(experiment)} holds a run that began with something else; changed: "
                        f"{'; '.join(changed)}. {remedy}")  # fmt: skip


def _compare(saved: Path, experiment: Experiment, remedy: str) -> None:
    """What may differ when a run is continued is where it runs and on how much, not what it computes."""
    changed = _differing(saved, experiment)
    if changed is None:
        raise RunExists(f"{saved} is damaged, so that what it was of cannot be told. {remedy}")
    if changed:
        raise RunExists(
            f"{title(experiment)} holds a run of another experiment; these differ: {', '.join(changed)}. "
            "Remedy: resume with the same file and overrides, use --force to replace it, or name=..."
        )


def _differing(saved: Path, experiment: Experiment) -> list[str] | None:
    """The sections in which the saved experiment is another one; None where its file is damaged."""
    old, new = _read_experiment(saved), _compared(experiment)
    return None if old is None else [key for key in new if old.get(key) != new[key]]


def _compared(experiment: Experiment) -> dict[str, Any]:
    plain = strict_yaml.parse(schema.dump(experiment))
    plain["resources.precision"] = plain.pop("resources")["precision"]
    del plain["storage"]
    return plain


def _experiment_key(experiment: Experiment) -> str:
    return content_key(json.dumps(_compared(experiment), sort_keys=True))


def _read_experiment(saved: Path) -> dict[str, Any] | None:
    """The saved experiment as ``_compared`` gives it, or None where the file is damaged."""
    try:
        raw = strict_yaml.parse(saved.read_text(encoding="utf-8"))
        if not raw.keys() >= Experiment.model_fields.keys():
            return None
        raw["resources.precision"] = raw.pop("resources")["precision"]
        return raw
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
