"""The run folder of a run, held by this process: locked, fetched, and checked to be the same run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from pfray.config import schema
from pfray.errors import RunExists, nearest
from pfray.reporting.observers import Observer, Observers
from pfray.storage import open_run, run_lock
from pfray.storage.identity import identity
from pfray.storage.progress import progress
from pfray.storage.remote import open_bucket
from pfray.storage.run_folder import RunFolder
from pfray.storage.sync import synchronized
from pfray.task import Task
from pfray.utils.files import read_json
from pfray.workflow.components import with_defaults
from pfray.workflow.given import Given
from pfray.workflow.setup import LoadedRun


@contextlib.contextmanager
def locked_run(
    experiment: schema.Experiment, observers: Observers, given: Given | None = None, *, resume: bool, force: bool
) -> Iterator[LockedRun]:
    """Lock the experiment's run folder for the length of the block. Model and data are not loaded for it.

    Raises RunExists if another process or another run uses the folder, StorageError if it cannot be used.
    """
    run, plain = RunFolder.at(experiment.storage, experiment.name), schema.plain(with_defaults(experiment, given))
    with run.locked(), contextlib.ExitStack() as closing:
        # Slow if a killed run left its lock, which is then watched, or if a run to continue is fetched.
        with observers.stage("open storage") if run.url else contextlib.nullcontext():
            synchronize = closing.enter_context(synchronized(run, resume=resume))
        yield LockedRun(run, plain, observers, synchronize, resume=resume, force=force)


def refusal(experiment: schema.Experiment, given: Given | None, *, resume: bool, force: bool) -> str | None:
    """Reason why a run would not begin in its folder, as it is now; None if it would. Nothing is locked or fetched.

    Of a run at a URL only its presence is looked at. Raises StorageError for a store that fails.
    """
    run, plain = RunFolder.at(experiment.storage, experiment.name), schema.plain(with_defaults(experiment, given))
    try:
        if run.url is not None:
            names = open_bucket(run.url.removesuffix(f"/{run.name}")).names(run.name)
            open_run.refuse_files(run.url, names, resume=resume, force=force)
        else:
            run_lock.check_free(run.path)
            open_run.check_folder(run, plain, resume=resume, force=force)
    except RunExists as error:
        return str(error)
    return None


class LockedRun:
    """A run folder that no other process can use.

    is_complete: the run is finished and its files are undamaged; ``check`` and ``open`` are then not to be called, and
    ``check_same`` only if model and task are at hand.
    synchronize: starts to send the folder's files to its URL, if it has one.
    """

    def __init__(
        self, folder: RunFolder, experiment: Mapping[str, Any], observers: Observers,
        synchronize: Callable[[], None], *, resume: bool, force: bool,
    ) -> None:  # fmt: skip
        """experiment: plain data. Tells what is continued. Raises RunExists, StorageError."""
        self.folder, self.synchronize = folder, synchronize
        self.experiment, self.observers, self.resume, self.force = experiment, observers, resume, force
        self.identity: dict[str, Any] | None = None
        exists = folder.experiment.exists()
        open_run.check_folder(folder, experiment, resume=resume, force=force)
        finished = resume and folder.is_finished
        damage = folder.find_damage() if finished else None
        if damage:
            observers.note(f"{damage}; the files are made again")
        elif resume and not finished:
            others = [path.parent.name for path in folder.path.parent.glob(f"*/{folder.experiment.name}")]
            new = f"holds no run yet; a new one begins.{nearest(folder.name, others)}".removesuffix(".")
            observers.note(f"note: {folder.title} {f'continues, with {progress(folder)}' if exists else new}")
        self.is_complete = finished and not damage

    def check(self, loaded: LoadedRun, trials: int) -> None:
        """Check that the run to continue began with this model and these data, and has lost none of its trials.

        trials: the budget of the search. Raises RunExists, StorageError.
        """
        self.check_same(loaded.model, loaded.task, loaded.is_trained)
        if self.resume:
            open_run.check_trials(self.folder, loaded.space, trials)

    def check_same(self, model: nn.Module, task: Task, is_trained: bool) -> None:
        """Check that the run began with this model, these data and functions. Raises RunExists.

        is_trained: the weights are the user's.
        """
        self.identity = identity(self.experiment, model, task, is_trained)
        if self.is_complete:  # Another version of pfray does no harm to a run that is finished.
            self.identity["pfray"] = (read_json(self.folder.identity) or self.identity).get("pfray")
        self._call(open_run.check_folder)

    def open(self) -> None:
        """Prepare the folder for work. The first call that writes."""
        self._call(open_run.open_folder)
        self.synchronize()
        self.observers.add(SecondsFile(self.folder, self.observers.seconds))

    def changed(self) -> list[str]:
        """Changes since the run that show without model and data, in a few words each."""
        return open_run.changed_code(self.folder, self.experiment)

    def _call(self, function: Callable[..., None]) -> None:
        function(self.folder, self.experiment, resume=self.resume, force=self.force, identity=self.identity)


class SecondsFile(Observer):
    """Writes the seconds of each stage into the run folder, earlier sessions of the run included."""

    def __init__(self, run: RunFolder, seconds: Mapping[str, float]) -> None:
        self.run, self.seconds, self.earlier = run, seconds, run.read_seconds()

    def stage_ended(self, stage: str, seconds: float, failed: bool) -> None:
        names = {**self.earlier, **self.seconds}
        self.run.write_seconds({n: self.earlier.get(n, 0.0) + self.seconds.get(n, 0.0) for n in names})
