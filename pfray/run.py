"""The command line: one experiment file in, a smaller and checked model out. Reads like the design's "one run"."""

from __future__ import annotations

import sys

from pfray.utils import command

if __name__ == "__main__":
    # Before the imports below, which take as long as a user may need to press Ctrl-C.
    command.begin(command.resume_hint(sys.argv[1:]))

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pfray.config import schema
from pfray.errors import ConfigError, GoalMissed
from pfray.reporting.progress import Progress
from pfray.utils.url import is_url

if TYPE_CHECKING:
    from pfray.measure.evaluation import Measurement
    from pfray.reporting.summary import Summary
    from pfray.space import Plan
    from pfray.workflow.setup import Start
    from pfray.workflow.trials import Choice


def run(
    experiment: schema.Experiment, *, resume: bool = False, force: bool = False, console: Console | None = None
) -> Path:
    """Do the whole job and return the run folder. Raises PfrayError for everything a user can put right."""
    # Imported here, so that a wrong experiment file is reported at once.
    from pfray.reporting import report
    from pfray.reporting.summary import Summary
    from pfray.search import _trial_log
    from pfray.storage import run_folder as folder
    from pfray.storage.identity import identity
    from pfray.storage.sync import mirrored
    from pfray.workflow import setup

    progress = Progress(console)
    start = setup.load(experiment, progress)
    working = folder.storage_folder(experiment) / experiment.name
    with folder.alone(experiment), contextlib.ExitStack() as closing:
        # A lock that a killed run left behind is watched for a while, and a run to go on with is fetched.
        with progress.stage("open storage") if is_url(experiment.storage) else contextlib.nullcontext():
            begin_mirror = closing.enter_context(mirrored(experiment, working, resume=resume))
        known = identity(experiment, start.model, start.task)
        run_folder = folder.check_folder(experiment, resume=resume, force=force, identity=known)
        damage = folder.damaged(run_folder) if resume and folder.is_finished(run_folder) else None
        if damage:
            progress.say(f"{damage}; the files are made again")
        if resume and folder.is_finished(run_folder) and not damage:
            # Made again because a run may have been killed between its last two files.
            progress.say(f"{folder.title(experiment)} is finished already; its report is {report.write(run_folder)}")
            begin_mirror()
        else:
            if resume:
                _trial_log.check_run(run_folder, start.space, experiment.search.trials)
            _compress(experiment, start, progress, begin_mirror, known, resume=resume, force=force)
    _check_goals(Summary.read(run_folder / folder.SUMMARY))
    return run_folder


def _compress(
    experiment: schema.Experiment,
    start: Start,
    progress: Progress,
    begin_mirror: Callable[[], None],
    identity: Mapping[str, Any],
    *,
    resume: bool,
    force: bool,
) -> None:
    """Teacher, search, retraining, export, report."""
    from pfray.cluster import preflight, ray_cluster
    from pfray.learner.context import Context, Recipe
    from pfray.objective import WEIGH_COST
    from pfray.reporting import report
    from pfray.reporting.prometheus import Metrics
    from pfray.reporting.tensorboard import Events
    from pfray.search._trial_log import TIMED
    from pfray.storage import run_folder as folder
    from pfray.utils.cache import save_tensors
    from pfray.workflow import finalize, latency_model, retrain
    from pfray.workflow.baselines import first_plans, plans_without_search
    from pfray.workflow.teacher import make_teacher
    from pfray.workflow.trials import choose, run_trials

    parts, task = start.parts, start.task
    with ray_cluster.ray_session(experiment.resources, progress), contextlib.ExitStack() as closing:
        used = (parts.learner, parts.learner_settings, start.model)
        preflight.check_nodes(task, used, folder.storage_folder(experiment))
        # Only now, when nothing can be wrong with the request any more, is anything written.
        run_folder = folder.open_folder(experiment, resume=resume, force=force, identity=identity)
        begin_mirror()
        earlier = folder.read_seconds(run_folder)
        closing.enter_context(_keep_seconds(run_folder, progress, earlier))
        events, metrics = Events(run_folder / "events"), Metrics(experiment.name)
        closing.callback(setattr, progress, "on_stage", None)
        progress.on_stage = metrics.enter
        trainer = retrain.Trainer(experiment.resources, run_folder, progress, events.epoch, experiment.distributed)
        teacher = make_teacher(experiment, start.model, task, trainer)
        save_tensors(run_folder / "teacher.safetensors", teacher.state_dict())

        context = Context(task, teacher, experiment.seed, experiment.resources.precision)
        recipe = Recipe(
            parts.learner, parts.learner_settings, experiment.finetune, experiment.distill, start.searched
        )
        with progress.stage("plans without search"):
            curves = parts.learner(teacher, task, parts.learner_settings).error_curves()
            known = plans_without_search(start.space, start.limits, curves)
        searcher = parts.searcher(
            start.space, start.limits, parts.search_settings, seed=experiment.seed, trials=experiment.search.trials,
            first_plans=first_plans(known, parts.searcher), use_full_budget=start.objective.name not in WEIGH_COST,
            folder=run_folder / "search",
        )  # fmt: skip
        searcher.warm_start(start.earlier)
        if (note := searcher.resume()) is not None:
            progress.say(f"note: {note}")
        if not searcher.finished():
            run_trials(
                context, recipe, start.objective, searcher, experiment.search, experiment.resources, run_folder,
                progress, events, metrics=metrics,
            )  # fmt: skip
        choice = choose(
            context, recipe, start.objective, searcher, experiment.search, experiment.resources, run_folder, progress
        )

        plans: dict[str, Plan] = {name: plan for name, plan in known.items() if name in experiment.search.baselines}
        plans["compressed"] = choice.plan
        if "latency_ms" in start.limits:
            with progress.stage("time plans", total=len(plans)) as stage:
                path = run_folder / "search" / TIMED
                # A plan that the user gave is never changed: too slow, it is so in the end.
                free = {n: plan for n, plan in plans.items() if n != "compressed" or searcher.plan_source is None}
                plans |= latency_model.hold(free, start.space, start.limits, recipe, context, path, stage.update)
            choice = replace(choice, plan=plans["compressed"])
        models = trainer.train(recipe, context, plans)

    with _keep_seconds(run_folder, progress, earlier):
        with progress.stage("measure"):
            sizes = {"teacher": (run_folder / "teacher.safetensors").stat().st_size}
            for name, model in models.items():
                packed = "model.packed" if name == "compressed" else f"{name}.packed"
                sizes[name] = finalize.pack(model, run_folder / packed)
            measured = {n: finalize.measure_test(m, task, sizes[n]) for n, m in {"teacher": teacher, **models}.items()}
            for name, measurement in measured.items():
                events.final(name, measurement)
            events.close()
        exported = finalize.export_model(models["compressed"], teacher, task, experiment.export, run_folder, progress)
        if exported is not None:
            for name, key in (("compressed", "latency_ms"), ("teacher", "teacher_latency_ms")):
                measured[name] = replace(measured[name], latency_ms=exported[key])
    counts, seconds = searcher.count(), folder.read_seconds(run_folder)
    summary = _summarize(experiment, start, measured, exported, choice, known["uniform"], counts, seconds)
    folder.write_summary(run_folder, summary.to_dict())
    report.write(run_folder)
    _tell_result(summary, folder.title(experiment), run_folder, progress)


def _summarize(
    experiment: schema.Experiment,
    start: Start,
    measured: Mapping[str, Measurement],
    exported: Mapping[str, Any] | None,
    choice: Choice,
    uniform: Plan,
    counts: Mapping[str, int | None],
    seconds: Mapping[str, float],
) -> Summary:
    """measured: by ``teacher``, ``compressed`` and baseline. counts: trials that are finished, and that failed."""
    from pfray.reporting.summary import Summary, absolute_limits

    tested = {name: measurement.to_dict() for name, measurement in measured.items()}
    return Summary(
        experiment=experiment.name,
        learner=experiment.learner.title,
        searcher=experiment.search.name,
        seed=experiment.seed,
        objective=start.objective.name,
        target=experiment.target.model_dump(exclude_none=True),
        limits=absolute_limits(experiment.target.costs(), start.limits, exported),
        teacher=tested["teacher"],
        uniform=tested.get("uniform"),
        allocate=tested.get("allocate"),
        compressed=tested["compressed"],
        exported=exported,
        plan=choice.plan,
        uniform_plan=uniform,
        choice=choice.to_dict(),
        trials={**counts, "best": choice.trial},
        seconds=seconds,
    )


def _check_goals(summary: Summary) -> None:
    """Raise GoalMissed where a complete run misses a goal of its target."""
    from pfray.reporting.goals import missed_goals

    if missed := missed_goals(summary):
        raise GoalMissed("\n".join(goal.error() for goal in missed))


@contextlib.contextmanager
def _keep_seconds(run_folder: Path, progress: Progress, earlier: dict[str, float]) -> Iterator[None]:
    """Whatever ends the block, the folder then knows how long each stage took, earlier sessions of the run included."""
    from pfray.storage import run_folder as folder

    try:
        yield
    finally:
        names = {**earlier, **progress.seconds}
        folder.write_seconds(run_folder, {n: earlier.get(n, 0.0) + progress.seconds.get(n, 0.0) for n in names})


def _tell_result(summary: Summary, title: str, run_folder: Path, progress: Progress) -> None:
    from pfray.reporting import report

    progress.say("")
    progress.say(report.headline(summary))
    for remark in report.remarks(summary):
        progress.say(f"note: {remark}")
    progress.say(f"files: {title}")
    progress.say(f"report: {run_folder / 'report.html'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 for a run that failed, 2 for a wrong request. Ctrl-C ends the process with 130,
    SIGTERM with 143."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return command.run_command(partial(_main, given), given, command.resume_hint(given))


def _main(arguments: Sequence[str]) -> int:
    options = _parser().parse_intermixed_args(arguments)
    # Some options stand for a setting.
    given = {key: value for key, value in vars(options).items() if "." in key and value is not None}
    overrides = [*options.overrides, *(f"{key}={json.dumps(value)}" for key, value in given.items())]
    if options.resume and options.force:
        raise ConfigError("--resume and --force exclude each other. Remedy: give one of them")
    from pfray.workflow.setup import component_mistakes

    experiment = schema.load(options.experiment, overrides, component_mistakes)
    if options.show:
        print(schema.dump(experiment), end="")
    else:
        run(experiment, resume=options.resume, force=options.force)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pfray.run",
        description="Compress a trained network: search a plan for the target, retrain the best, export and check it.",
        epilog="example: python -m pfray.run experiments/mobilenet_sparse.yaml target.sparsity=0.9 search.trials=60",
    )
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
    return parser


if __name__ == "__main__":
    sys.exit(main())
