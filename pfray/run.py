"""A run: from one experiment file to a smaller, checked model."""

from __future__ import annotations

import sys

from pfray.utils import command

if __name__ == "__main__":
    # Before the slow imports below, because a user may press Ctrl-C during them.
    command.begin(command.resume_hint("python -m pfray.run", sys.argv[1:]))

import argparse
import json
from collections.abc import Mapping, Sequence
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
    quiet: bool = False,
    console: Console | None = None,
    observers: Sequence[Observer] = (),
) -> Path:
    """Run the experiment and return the run folder. Raises PfrayError for every mistake that a user can correct.

    resume: continue the run in the folder. force: replace it. quiet: print the result and the notes, and no progress.
    observers: told of all events, as progress, TensorBoard and Prometheus are.
    """
    watching = [Progress(console, stages=not quiet), *observers]
    finished = execute(experiment, None, resume=resume, force=force, observers=watching)
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
    observers: Sequence[Observer] = (),
) -> Finished:
    """As ``run``, but a missed goal is no error. given: model and task from Python, in place of the named ones.

    A finished run is returned only for the model and task that it began with, if they are given. The observers are not
    told the result then, because it is returned to who prints it.
    """
    _check_options(resume, force)
    # Imported here, so that a wrong experiment file is reported at once.
    from pfray.reporting import report
    from pfray.reporting.summary import Summary
    from pfray.workflow import setup
    from pfray.workflow.locked_run import locked_run
    from pfray.workflow.summary import tell_result

    model = None
    with (
        closing(Observers(observers)) as watching,
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
            if given is None:
                tell_result(Summary.read(folder.summary), folder, watching)
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
    from pfray.workflow.summary import make_summary
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
            folder.remove_views()
    results = measure_and_export(teacher, models, task, experiment.export, folder, observers)
    for remark in task.remarks():
        observers.note(f"note: {remark}")
    board.close()  # before the last upload to a storage elsewhere
    summary = make_summary(experiment, loaded, found, results, folder.read_seconds(), observers.seconds)
    folder.write_summary(summary.to_dict())
    report.write(folder.path)
    return models[MODEL]


@dataclass(frozen=True)
class Checked:
    """A valid experiment. It prints itself.

    knobs: number of the search's decisions. limits: the target as absolute numbers, by unit. whole: the same costs of
    the model as it is. refusal: why a run would not begin, although the experiment is valid; None if it would.
    """

    name: str
    knobs: int
    limits: Mapping[str, float]
    whole: Mapping[str, float]
    refusal: str | None = None

    def __repr__(self) -> str:
        valid = f"{self.name} is valid: {self.knobs} knobs, and the target can be reached"
        return valid if self.refusal is None else f"{valid}\nnote: a run would be refused: {self.refusal}"


def check(
    experiment: schema.Experiment,
    given: Given | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    observers: Sequence[Observer] = (),
) -> Checked:
    """Look for mistakes without training or writing anything. Arguments as of ``execute``. Raises PfrayError."""
    _check_options(resume, force)
    from pfray.measure.cost import total_macs
    from pfray.task import example_input
    from pfray.workflow import setup
    from pfray.workflow.learner_check import try_plan
    from pfray.workflow.locked_run import refusal
    from pfray.workflow.target import costs_as_it_is

    with closing(Observers(observers)) as watching:
        loaded = setup.load(experiment, watching, given)
        with watching.stage("try a plan"):
            try_plan(experiment, loaded)
    whole = costs_as_it_is(loaded.space, loaded.model, total_macs(loaded.model, example_input(loaded.task)))
    return Checked(
        experiment.name, len(loaded.space), loaded.limits, {unit: whole[unit] for unit in loaded.limits},
        refusal(experiment, given, resume=resume, force=force),
    )  # fmt: skip


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
        watching = [Progress(stages=not options.quiet)]
        print(check(experiment, resume=options.resume, force=options.force, observers=watching))
    else:
        run(experiment, resume=options.resume, force=options.force, quiet=options.quiet)
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
    parser.add_argument("--quiet", action="store_true", help="print no progress, only the notes and the result")
    parser.add_argument("--show", action="store_true", help="print the experiment as resolved, and do nothing")
    parser.add_argument("--check", action="store_true", help="find mistakes without training anything, and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
