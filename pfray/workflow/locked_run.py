"""The run folder of a run, held by this process: locked, fetched, and checked to be the same run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pfray.config import schema
from pfray.reporting.observers import Observer, Observers
from pfray.storage import open_run
from pfray.storage.identity import identity
from pfray.storage.run_folder import RunFolder
from pfray.storage.sync import synchronized
from pfray.workflow.setup import LoadedRun


@dataclass(frozen=True)
class LockedRun:
    """A run folder that no other process can use.

    is_complete: the run is finished and its files are undamaged. open: prepares the folder for work; the first call
    that writes. synchronize: starts to send the folder's files to its URL, if it has one.
    """

    folder: RunFolder
    is_complete: bool
    open: Callable[[], None]
    synchronize: Callable[[], None]


@contextlib.contextmanager
def locked_run(
    experiment: schema.Experiment, loaded: LoadedRun, observers: Observers, *, resume: bool, force: bool
) -> Iterator[LockedRun]:
    """Lock the experiment's run folder for the length of the block.

    Raises RunExists if another process or another run uses the folder, StorageError if it cannot be used.
    """
    run, plain = RunFolder.at(experiment.storage, experiment.name), schema.plain(experiment)
    with run.locked(), contextlib.ExitStack() as closing:
        # Slow if a killed run left its lock, which is then watched, or if a run to continue is fetched.
        with observers.stage("open storage") if run.url else contextlib.nullcontext():
            synchronize = closing.enter_context(synchronized(run, resume=resume))
        current = identity(plain, loaded.model, loaded.task, loaded.is_trained)
        open_run.check_folder(run, plain, resume=resume, force=force, identity=current)
        finished = resume and run.is_finished
        damage = run.find_damage() if finished else None
        if damage:
            observers.note(f"{damage}; the files are made again")
        complete = finished and not damage
        if resume and not complete:
            open_run.check_trials(run, loaded.space, experiment.search.trials)

        def open_folder() -> None:
            open_run.open_folder(run, plain, resume=resume, force=force, identity=current)
            synchronize()
            observers.add(SecondsFile(run, observers.seconds))

        yield LockedRun(run, complete, open_folder, synchronize)


class SecondsFile(Observer):
    """Writes the seconds of each stage into the run folder, earlier sessions of the run included."""

    def __init__(self, run: RunFolder, seconds: Mapping[str, float]) -> None:
        self.run, self.seconds, self.earlier = run, seconds, run.read_seconds()

    def stage_ended(self, stage: str, seconds: float, failed: bool) -> None:
        names = {**self.earlier, **self.seconds}
        self.run.write_seconds({n: self.earlier.get(n, 0.0) + self.seconds.get(n, 0.0) for n in names})
