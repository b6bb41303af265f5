"""The run folder of one run, claimed for this process: locked, fetched, and checked to be the same run."""

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
class Claim:
    """run: the claimed folder. is_complete: the run is finished and its files are whole, so nothing is left to do.

    open: makes the folder ready to work in; the first call that writes anything. keep: begins to synchronize it with
    its URL, where it has one.
    """

    run: RunFolder
    is_complete: bool
    open: Callable[[], None]
    keep: Callable[[], None]


@contextlib.contextmanager
def claimed(
    experiment: schema.Experiment, loaded: LoadedRun, observers: Observers, *, resume: bool, force: bool
) -> Iterator[Claim]:
    """Claim the experiment's run folder for the length of the block.

    Raises RunExists where another process works there or another run is there, StorageError where it cannot be used.
    """
    run, plain = RunFolder.at(experiment.storage, experiment.name), schema.plain(experiment)
    with run.locked(), contextlib.ExitStack() as closing:
        # Takes a while where a lock that a killed run left behind is watched, or a run to go on with is fetched.
        with observers.stage("open storage") if run.url else contextlib.nullcontext():
            keep = closing.enter_context(synchronized(run, resume=resume))
        began = identity(plain, loaded.model, loaded.task)
        open_run.check_folder(run, plain, resume=resume, force=force, identity=began)
        going_on = resume and run.is_finished
        damage = run.find_damage() if going_on else None
        if damage:
            observers.note(f"{damage}; the files are made again")
        complete = going_on and not damage
        if resume and not complete:
            open_run.check_trials(run, loaded.space, experiment.search.trials)

        def open_folder() -> None:
            open_run.open_folder(run, plain, resume=resume, force=force, identity=began)
            keep()
            observers.add(SecondsFile(run, observers.seconds))

        yield Claim(run, complete, open_folder, keep)


class SecondsFile(Observer):
    """Keeps the seconds of each stage in the run folder, earlier sessions of the run included."""

    def __init__(self, run: RunFolder, seconds: Mapping[str, float]) -> None:
        self.run, self.seconds, self.earlier = run, seconds, run.read_seconds()

    def stage_ended(self, stage: str, seconds: float, failed: bool) -> None:
        names = {**self.earlier, **self.seconds}
        self.run.write_seconds({n: self.earlier.get(n, 0.0) + self.seconds.get(n, 0.0) for n in names})
