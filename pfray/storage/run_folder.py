"""Layout of a run folder: a property or method for every file. Reads and writes the small files of a run's progress."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfray.search import _state, _trial_log
from pfray.storage import run_lock
from pfray.training import checkpoints
from pfray.utils.cache import cache_dir, content_key
from pfray.utils.files import read_json, write_atomically, write_json
from pfray.utils.url import is_url

EXPERIMENT, SUMMARY, IDENTITY, CHECKSUMS = "experiment.yaml", "summary.json", "identity.json", "checksums.json"
SECONDS, REPORT = "seconds.json", "report.html"
# A searcher's own files are named in search/, a training's in training/checkpoints.py.
SEARCH, RESCORE, TRAINING, EVENTS, TUNE = _trial_log.FOLDER, "rescore", "training", "events", "tune"
# Files that refer to others. They are read before those and sent after them, so that no part of a state is missing.
INDEXES = (f"{SEARCH}/{_state.STATE}", checkpoints.SNAPSHOT)
# Name of a run's result; its baselines have other names.
MODEL = "compressed"


@dataclass(frozen=True)
class RunFolder:
    """The folder at ``path``. url: its address if the run is kept in a store; ``path`` is then the local copy."""

    path: Path
    url: str | None = None

    @classmethod
    def at(cls, storage: str, name: str) -> RunFolder:
        """The run ``name`` in the folder or URL ``storage``; for a URL, ``path`` is in the cache."""
        if is_url(storage):
            return cls(cache_dir() / "runs" / content_key(storage) / name, f"{storage}/{name}")
        return cls(Path(storage).expanduser().resolve() / name)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def title(self) -> str:
        """The folder as its user knows it."""
        return self.url or str(self.path)

    # -- next to the folder, because --force removes the folder, and a new run refuses a folder with other files

    @property
    def lock(self) -> Path:
        return run_lock.lock_file(self.path)

    @property
    def job(self) -> Path:
        """Record that ``pfray submit`` keeps of the run's job."""
        return self.sibling("job.json")

    def sibling(self, suffix: str) -> Path:
        """A hidden file or folder of this run, next to its folder."""
        return self.path.with_name(f".{self.name}.{suffix}")

    # -- the run as a whole

    @property
    def experiment(self) -> Path:
        """The resolved experiment; the first file of a run."""
        return self.path / EXPERIMENT

    @property
    def identity(self) -> Path:
        """Model, data and code at the begin of the run (``identity.py``)."""
        return self.path / IDENTITY

    @property
    def seconds(self) -> Path:
        """Seconds of each stage, all sessions added up."""
        return self.path / SECONDS

    @property
    def checksums(self) -> Path:
        """Checksums of the files of a finished run."""
        return self.path / CHECKSUMS

    @property
    def summary(self) -> Path:
        """The result. A run with this file is finished; only the report is written later."""
        return self.path / SUMMARY

    @property
    def report(self) -> Path:
        return self.path / REPORT

    @property
    def events(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.path / EVENTS

    # -- search

    @property
    def search(self) -> Path:
        """Folder of the searcher."""
        return self.path / SEARCH

    @property
    def trials(self) -> Path:
        """One line per finished trial."""
        return self.search / _trial_log.TRIALS

    @property
    def timed_plans(self) -> Path:
        """Plans that were compressed further because their files were too slow."""
        return self.search / "timed_plans.json"

    @property
    def rescore(self) -> Path:
        """Folder of the searcher that measures the best trials again."""
        return self.path / RESCORE

    @property
    def rescored_trials(self) -> Path:
        return self.rescore / _trial_log.TRIALS

    def tune(self, stage: str) -> Path:
        """Folder of Ray Tune's own record of a search, which is never read again."""
        return self.path / TUNE / stage

    # -- training; a name is of a model, or of one stage of its training

    @property
    def teacher(self) -> Path:
        """State dict of the teacher that the trials start from."""
        return self.path / "teacher.safetensors"

    def training(self, name: str) -> Path:
        """Folder of a training's checkpoints and its curve."""
        return self.path / TRAINING / name

    def start(self, name: str) -> Path:
        """State dict from an algorithm's ``finish``, which a training starts from."""
        return self.path / TRAINING / f"{name}.start.safetensors"

    def trained(self, name: str) -> Path:
        """State dict after a finished training."""
        return self.path / TRAINING / f"{name}.safetensors"

    def made_of_choice(self) -> list[Path]:
        """Files and folders that were made from the chosen plan."""
        timed = [self.timed_plans] if self.timed_plans.exists() else []
        return [*(self.path / TRAINING).glob(f"{MODEL}*"), *timed]

    # -- export

    def packed(self, name: str = MODEL) -> Path:
        """Packed weights of the result, or of the baseline ``name``."""
        return self.path / ("model.packed" if name == MODEL else f"{name}.packed")

    @property
    def program(self) -> Path:
        return self.path / "model.pt2"

    @property
    def tflite(self) -> Path:
        return self.path / "model.tflite"

    @property
    def teacher_tflite(self) -> Path:
        return self.path / "teacher.tflite"

    # -- how far the run is

    @property
    def is_finished(self) -> bool:
        return self.summary.exists()

    def find_damage(self) -> str | None:
        """The first damage in the files of a finished run, in a few words; None if there is none."""
        known = read_json(self.checksums)
        if known is None:
            return f"{self.checksums} is missing or damaged"
        wrong = [name for name, checksum in known.items() if _file_checksum(self.path / name) != checksum]
        return f"{self.path / wrong[0]} is missing or damaged" if wrong else None

    def read_seconds(self) -> dict[str, float]:
        """Seconds that each stage took in earlier sessions of this run."""
        seconds = read_json(self.seconds)
        if seconds is None and self.seconds.exists():
            logging.getLogger("pfray").warning(
                "%s is damaged; the time of earlier sessions is not counted", self.seconds
            )
        return seconds or {}

    def write_seconds(self, seconds: Mapping[str, float]) -> None:
        write_json(self.seconds, seconds)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the checksums of all files, then the result, which finishes the run."""
        content = json.dumps(summary, indent=2).encode()
        files = [*self.path.glob("*"), *self.search.glob("*"), *self.rescore.glob("*")]
        names = [path.relative_to(self.path).as_posix() for path in files if path.is_file() and path.name[0] != "."]
        checksums = {
            name: _file_checksum(self.path / name)
            for name in sorted(set(names) - {SUMMARY, CHECKSUMS, REPORT, SECONDS})
        }
        write_json(self.checksums, {**checksums, SUMMARY: hashlib.sha256(content).hexdigest()})
        write_atomically(self.summary, content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for the length of the block (``run_lock.py``). Raises RunExists, StorageError."""
        with run_lock.locked(self.path, self.title):
            yield


def curve_of(training: Path) -> Path:
    """File of the curve of the training in a folder: one line per epoch."""
    return training / "curve.jsonl"


def running_of(training: Path) -> Path:
    """File that says how far the epoch is that goes on in the training in a folder; replaced every few seconds."""
    return training / "running.json"


def traceback_of(training: Path) -> Path:
    """File of the traceback of a training that failed, in its folder."""
    return training / "traceback.txt"


def _file_checksum(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
