"""A run: from one experiment file to a smaller, checked model."""

from __future__ import annotations

import sys

from pfray.utils import command

if __name__ == "__main__":
    # Before the slow imports below, because a user may press Ctrl-C during them.
    command.begin(command.resume_hint("python -m pfray.run", sys.argv[1:]))

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from pfray.config import catalog, schema
from pfray.errors import ConfigError
from pfray.reporting.observers import Observer, Observers
from pfray.reporting.progress import Progress
from pfray.workflow.experiment_file import load_experiment, refuse_if_in_use

if TYPE_CHECKING:
    from torch import nn

    from pfray.reporting.summary import Summary
    from pfray.storage.run_folder import RunFolder
    from pfray.workflow.given import Given
    from pfray.workflow.locked_run import LockedRun
    from pfray.workflow.setup import LoadedRun


def run(
    experiment: schema.Experiment,
    *,
    resume: bool = False,
    force: bool = False,
    console: Console | None = None,
    observers: Sequence[Observer] = (),
) -> Path:
    """Run the experiment and return the run folder. Raises PfrayError for every mistake that a user can correct.

    resume: continue the run in the folder. force: replace it. observers: told of all events, as progress, TensorBoard
    and Prometheus are.
    """
    finished = execute(experiment, None, resume=resume, force=force, console=console, observers=observers)
    finished.check_goals()
    return finished.folder.path


@dataclass(frozen=True)
class Finished:
    """A complete run. model: the compressed model; None if the run was complete before."""

    folder: RunFolder
    summary: Summary
    model: nn.Module | None

    def check_goals(self) -> None:
        """Raise GoalMissed if the result misses a goal of its target."""
        from pfray.workflow.summary import check_goals

        check_goals(self.summary)


def execute(
    experiment: schema.Experiment,
    given: Given | None,
    *,
    resume: bool = False,
    force: bool = False,
    console: Console | None = None,
    observers: Sequence[Observer] = (),
) -> Finished:
    """As ``run``, but a missed goal is no error. given: model and task from Python, in place of the named ones.

    A finished run is returned only for the model and task that it began with, if they are given.
    """
    _check_options(resume, force)
    # Imported here, so that a wrong experiment file is reported at once.
    from pfray.reporting import report
    from pfray.reporting.summary import Summary
    from pfray.workflow import setup
    from pfray.workflow.locked_run import locked_run

    model = None
    with (
        closing(Observers([Progress(console), *observers])) as watching,
        locked_run(experiment, watching, given, resume=resume, force=force) as locked,
    ):
        folder = locked.folder
        if locked.is_complete:
            if given is not None:
                _check_given(experiment, given, locked)
            # Rewritten, because a run may have been killed between its last two files.
            watching.note(f"{folder.title} is finished already; its report is {report.write(folder.path)}")
            if changed := locked.changed():
                watching.note(f"note: changed since that run: {'; '.join(changed)}")
            locked.synchronize()
        else:
            loaded = setup.load(experiment, watching, given)
            locked.check(loaded, experiment.search.trials)
            model = _compress(experiment, loaded, locked, watching)
    return Finished(folder, Summary.read(folder.summary), model)


def _check_options(resume: bool, force: bool) -> None:
    if resume and force:
        raise ConfigError("--resume and --force exclude each other. Remedy: give one of them")


def _check_given(experiment: schema.Experiment, given: Given, locked: LockedRun) -> None:
    """Check that a finished run began with what is given, treated as at the begin of a run. Raises RunExists."""
    from pfray.workflow import setup
    from pfray.workflow.components import resolve

    components = resolve(experiment, given)
    task = setup.build_task(experiment, components)
    locked.check_same(setup.build_model(experiment, components, task), task, given.is_trained)


def _compress(experiment: schema.Experiment, loaded: LoadedRun, locked: LockedRun, observers: Observers) -> nn.Module:
    """Teacher, search, retraining, export, report. Returns the compressed model."""
    from pfray.cluster import preflight, ray_cluster
    from pfray.export.tflite.kept import teacher_file
    from pfray.reporting import prometheus, report
    from pfray.reporting.tensorboard import TensorBoard
    from pfray.storage.run_folder import MODEL
    from pfray.utils.cache import save_tensors
    from pfray.workflow import retrain
    from pfray.workflow.results import measure_and_export
    from pfray.workflow.search import search
    from pfray.workflow.setup import trial_spec
    from pfray.workflow.summary import make_summary, tell_result
    from pfray.workflow.teacher import make_teacher

    resources, components, folder, task = experiment.resources, loaded.components, locked.folder, loaded.task
    with ray_cluster.ray_session(observers, address=resources.address, dashboard=resources.dashboard):
        ray_cluster.check_room(resources.trial.cpu, resources.trial.gpu, resources.workers)
        used = (components.learner, components.learner_settings, loaded.model)
        preflight.check_nodes(task, used, folder.path.parent)
        # The first write. The request is known to be valid now.
        locked.open()
        board = TensorBoard(folder.events)
        observers.add(board)
        with observers.joined_by(prometheus.Prometheus(experiment.name)):
            if experiment.export.tflite and loaded.is_users_own:
                # Before anything is trained, because LiteRT's converter lacks some operators. The file is kept. A check
                # without the converter's last passes would save a tenth of the time.
                with observers.stage("convert"):
                    teacher_file(loaded.model, task)
            trainer = retrain.Trainer(resources, folder, observers, experiment.distributed)
            teacher = make_teacher(experiment, loaded, trainer)
            save_tensors(folder.teacher, teacher.state_dict())
            spec = trial_spec(experiment, loaded, teacher)
            found = search(experiment, loaded, spec, folder, observers)
            models = trainer.train(spec.recipe, spec.context, found.plans)
    results = measure_and_export(teacher, models, task, experiment.export, folder, observers)
    for remark in task.remarks():
        observers.note(f"note: {remark}")
    board.close()  # before the last upload to a storage elsewhere
    summary = make_summary(experiment, loaded, found, results, folder.read_seconds(), observers.seconds)
    folder.write_summary(summary.to_dict())
    report.write(folder.path)
    tell_result(summary, folder, observers)
    return models[MODEL]


def check(experiment: schema.Experiment, console: Console | None = None) -> None:
    """Look for mistakes without training, and note that the experiment is valid. Raises PfrayError."""
    from pfray.workflow import setup
    from pfray.workflow.learner_check import try_plan

    observers = Observers([Progress(console)])
    loaded = setup.load(experiment, observers)
    with observers.stage("try a plan"):
        try_plan(experiment, loaded)
    observers.note(f"{experiment.name} is valid: {len(loaded.space)} knobs, and the target can be reached")


def main(arguments: Sequence[str] | None = None, program: str = "python -m pfray.run") -> int:
    """Exit code: 0, 1 for a run that failed, 2 for a wrong request. Ctrl-C ends the process with 130, SIGTERM with 143.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    return command.run_command(partial(_main, given, program), given, command.resume_hint(program, given))


def _main(arguments: Sequence[str], program: str) -> int:
    # Listing the components takes a moment, and only the help shows them.
    components = catalog.listing() if {"-h", "--help"} & set(arguments) else ""
    options = _parser(program, components).parse_intermixed_args(arguments)
    # Options whose name has a dot are settings.
    given = {key: value for key, value in vars(options).items() if "." in key and value is not None}
    overrides = [*options.overrides, *(f"{key}={json.dumps(value)}" for key, value in given.items())]
    _check_options(options.resume, options.force)
    if not (options.show or options.check):
        refuse_if_in_use(options.experiment, overrides)
    experiment = load_experiment(options.experiment, overrides)
    if options.show:
        from pfray.workflow.components import with_defaults

        print(schema.dump(with_defaults(experiment)), end="")
    elif options.check:
        check(experiment)
    else:
        run(experiment, resume=options.resume, force=options.force)
    return 0


def _parser(program: str, components: str) -> argparse.ArgumentParser:
    parser = command.make_parser(
        program,
        "Compress a trained network: search a plan for the target, retrain the best, export and check it.",
        ["experiments/mobilenet_sparse.yaml target.sparsity=0.9 search.trials=60", "exp.yaml --check",
         "exp.yaml --resume"],
        components,
    )  # fmt: skip
    parser.add_argument("experiment", type=Path, help="the experiment file (YAML)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings that replace the file's; an entry of a list goes by its name or its place from 0",
    )
    parser.add_argument("--resume", action="store_true", help="continue a run that was interrupted or killed")
    parser.add_argument("--force", action="store_true", help="replace the run that the run folder holds")
    parser.add_argument(
        "--warm-start", metavar="RUN", dest="search.warm_start", help="learn from the trials of an earlier run's folder"
    )
    parser.add_argument("--address", metavar="HOST:PORT", dest="resources.address", help="of a Ray cluster to run on")
    parser.add_argument("--show", action="store_true", help="print the experiment as resolved, and do nothing")
    parser.add_argument("--check", action="store_true", help="find mistakes without training anything, and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
