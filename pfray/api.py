"""pfray from Python: ``pfray.compress(model, train, ...)`` is a run whose model and data are objects.

    import pfray
    result = pfray.compress(model, train=train_loader, validation=val_loader, target={"macs": "0.5x"})
    result.model, result.report, result.tflite, result.summary["compressed"]["accuracy"]

``pfray.check`` takes the same arguments and trains nothing. ``pfray.inspect(model, train)`` shows what can be pruned.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from inspect import isclass, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfray.utils.python_words import in_python_words
from pfray.workflow.keywords import bound, named_keywords, python_words

# torch is imported when it is needed: ``import pfray`` also happens on devices that have none.
if TYPE_CHECKING:
    from torch import Tensor, nn

    from pfray.config.schema import Experiment
    from pfray.reporting.observers import Observer
    from pfray.run import Checked, Finished
    from pfray.workflow.given import Given
    from pfray.workflow.inspection import Inspection

# Keywords that are sections of an experiment file, left out if None.
SECTIONS = ("search", "teacher", "finetune", "distill", "export", "resources", "distributed")

# Seconds for Ray to end after an interruption.
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Result:
    """A finished run.

    model: the compressed module, physically smaller, on the CPU. folder: of the run. summary: what ``summary.json``
    holds. report: the HTML report. tflite: the device file; None if none was asked for. program: the .pt2 file.
    missed: goals of the target that the result misses, a line each. notes: what to know before quoting the headline.
    """

    model: nn.Module
    folder: Path
    summary: dict[str, Any]
    report: Path
    tflite: Path | None
    program: Path
    headline: str
    missed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        missed, notes = [f"missed: {line}" for line in self.missed], [f"note: {line}" for line in self.notes]
        return "\n".join([self.headline, *missed, *notes, f"report: {self.report}"])

    def _repr_html_(self) -> str:
        """For notebooks: the headline, the missed goals, the notes and the files."""
        missed = "".join(f"<div><b>missed:</b> {html.escape(line)}</div>" for line in self.missed)
        missed += "".join(f"<div>note: {html.escape(line)}</div>" for line in self.notes)
        files = [path for path in (self.report, self.tflite, self.program) if path is not None]
        links = " &middot; ".join(f"<a href='file://{html.escape(str(f))}'>{html.escape(f.name)}</a>" for f in files)
        return f"<div><b>{html.escape(self.headline)}</b></div>{missed}<div>{links}</div>"


@named_keywords
def compress(
    model: nn.Module,
    train: Any,
    validation: Any = None,
    test: Any = None,
    *,
    target: Mapping[str, Any],
    learner: str | Mapping[str, Any] | Sequence[Any] | type = "channel_pruned",
    loss: Callable[[Any, Any], Tensor] | None = None,
    metric: Any = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    higher_is_better: bool | None = None,
    adapt: Callable[[Any], tuple[Any, Any]] | None = None,
    output: str | int | Callable[[Any], Any] | None = None,
    soft_loss: Callable[[Any, Any, float], Tensor] | None = None,
    augment: Callable[[Any, Any], Any] | None = None,
    search: str | Mapping[str, Any] | type | None = None,
    teacher: Mapping[str, Any] | None = None,
    finetune: Mapping[str, Any] | None = None,
    distill: Mapping[str, Any] | None = None,
    export: Mapping[str, Any] | None = None,
    resources: Mapping[str, Any] | None = None,
    distributed: Mapping[str, Any] | None = None,
    seed: int = 0,
    storage: str | Path = "runs",
    name: str | None = None,
    resume: bool = False,
    force: bool = False,
    quiet: bool = False,
    observers: Iterable[Observer] = (),
) -> Result:
    """Compress a trained ``model`` to ``target``: search a plan, retrain it, export and check the result.

    train, validation, test: a torch DataLoader, a Dataset (map-style, or iterable with a length), a Hugging Face
        dataset, a list of samples, or a pair of tensors (inputs, targets). A batch is (inputs, targets), (input,
        input, ..., targets), or a mapping with a label; ``adapt(batch) -> (inputs, targets)`` takes any other. Inputs
        are what the model is called with: a tensor, a tuple (``model(*x)``) or a mapping (``model(**x)``).
        Without ``validation`` a tenth of ``train`` is held out. Without ``test`` the report quotes ``validation``.
    target: hard limits and goals as in an experiment file, such as ``{"macs": "0.5x", "max_drop": 0.01}``.
    learner: a name, a mapping with its settings, a list of them (a pipeline), or a class.
    loss(outputs, targets): a batch's mean. By default the cross entropy, for whole-numbered targets.
    metric: ``accuracy``, ``top5``, ``mse``, ``mae``, ``miou``, a torchmetrics metric, or a function of (outputs,
        targets) that gives each sample's score. By default the accuracy with a cross entropy, else the loss.
    evaluate(model): a number that replaces the metric. higher_is_better: of the metric, if it does not say so itself.
    output: what loss and metric read of the model's outputs: a key, a position or a function.
    soft_loss(outputs, teacher outputs, temperature): for ``distill`` with a loss other than the cross entropy.
    augment(inputs, generator): of training batches. A data set may change its samples itself.
    search, finetune, distill, export, resources, distributed: sections of an experiment file, as mappings. ``search``
        may also be a searcher's name or class.
    teacher: settings of a training of ``model`` before the search; without them it is taken as trained. ``expect`` is
        the metric that it has, such as ``{"expect": "71%"}``: less than half of it is an error.
    storage, name: the run folder is ``storage/name``; ``storage`` may be a URL such as ``s3://bucket/runs``.
    resume: continue an interrupted run. force: replace an earlier one.
    quiet: no progress on stderr. The result is printed by nobody but the caller.

    Raises PfrayError, in one line, for every mistake that a user can correct. A goal that the result misses is no
    error here; ``Result.missed`` names it.
    """
    asked = dict(locals())
    from pfray.run import execute

    with python_words():
        experiment, given = _request(asked)
        with _interruptible():
            watching = [*_progress(quiet), *observers]
            return _result(execute(experiment, given, resume=resume, force=force, observers=watching))


def check(*arguments: Any, **keywords: Any) -> Checked:
    """Find the mistakes of ``compress`` with the same arguments, in seconds: nothing is trained or written.

    Raises PfrayError as ``compress`` does. What is returned prints itself.
    """
    from pfray import run

    asked = bound(compress, arguments, keywords)
    with python_words():
        experiment, given = _request(asked)
        watching = [*_progress(asked["quiet"]), *asked["observers"]]
        checked = run.check(experiment, given, resume=asked["resume"], force=asked["force"], observers=watching)
        return checked if checked.refusal is None else replace(checked, refusal=in_python_words(checked.refusal))


check.__signature__ = signature(compress).replace(return_annotation="Checked")  # type: ignore[attr-defined]


@named_keywords
def inspect(model: nn.Module, train: Any, *, adapt: Callable[[Any], tuple[Any, Any]] | None = None) -> Inspection:
    """What of a model can be pruned: its channel groups, and the layers that stay whole with the reason.

    train, adapt: as of ``compress``; only the first samples are looked at. What is returned prints itself. Raises
    PfrayError.
    """
    from pfray.workflow.inspection import inspect_given

    with python_words():
        return inspect_given(model, train, adapt)


def _request(asked: Mapping[str, Any]) -> tuple[Experiment, Given]:
    """Experiment, model and task of the arguments of ``compress``, by name. Raises PfrayError."""
    from pfray.config import schema
    from pfray.workflow.components import component_mistakes
    from pfray.workflow.given import Judging, given_run

    model, train, seed = asked["model"], asked["train"], asked["seed"]
    raw = {key: _plain(asked[key]) for key in SECTIONS if asked[key] is not None}
    raw |= {"learner": _plain(asked["learner"]), "target": _plain(asked["target"]), "seed": seed}
    chosen = asked["name"] or _run_name(model, raw["learner"])
    raw |= {"name": chosen, "model": type(model).__name__, "data": type(train).__name__}
    raw["storage"] = str(asked["storage"])
    _add_batch_size(raw, train)

    def own_mistakes(components: Mapping[str, Any]) -> list[str]:
        return component_mistakes({kind: c for kind, c in components.items() if kind in ("learner", "search")})

    experiment = schema.validated(raw, own_mistakes)
    # What is expected of a teacher is no setting of a training.
    is_trained = asked["teacher"] is None or set(raw["teacher"]) == {"expect"}
    judged = Judging(*(asked[key] for key in (
        "loss", "metric", "higher_is_better", "evaluate", "output", "soft_loss",
    )))  # fmt: skip
    given = given_run(
        model, train, asked["validation"], asked["test"], judged, adapt=asked["adapt"], augment=asked["augment"],
        seed=seed, is_trained=is_trained,
    )  # fmt: skip
    return experiment, given


def _progress(quiet: bool) -> list[Observer]:
    """The run's progress on stderr, because stdout is the script's own."""
    from rich.console import Console

    from pfray.reporting.progress import Progress

    return [] if quiet else [Progress(Console(stderr=True))]


def _result(finished: Finished) -> Result:
    from pfray import export
    from pfray.errors import GoalMissed
    from pfray.reporting.goals import missed_goals
    from pfray.reporting.remarks import headline, remarks

    folder, missed = finished.folder, tuple[str, ...]()
    goals = {goal.remark() for goal in missed_goals(finished.summary)}
    try:
        finished.check_goals()
    except GoalMissed as error:
        missed = tuple(str(error).splitlines())
    model = export.load(folder.program) if finished.model is None else finished.model.cpu().eval()
    tflite = folder.tflite if folder.tflite.exists() else None
    return Result(
        model, folder.path, finished.summary.to_dict(), folder.report, tflite, folder.program,
        headline(finished.summary), missed, tuple(note for note in remarks(finished.summary) if note not in goals),
    )  # fmt: skip


@contextmanager
def _interruptible() -> Iterator[None]:
    """After Ctrl-C no training goes on, and the interpreter can end: Ray, if it is the run's own, is stopped."""
    import ray

    from pfray.utils.timeout import with_timeout

    own = not ray.is_initialized()
    try:
        yield
    except KeyboardInterrupt:
        if own and ray.is_initialized():
            with suppress(TimeoutError):
                with_timeout(STOP_SECONDS, ray.shutdown)
        print("interrupted. The same call with resume=True continues the run", file=sys.stderr, flush=True)
        raise


def _named(component: type) -> str:
    """The import path of a learner's or searcher's class, as an experiment file would name it.

    Raises ConfigError for a class inside a function, which has no path.
    """
    from pfray.errors import ConfigError

    if "<locals>" in component.__qualname__:
        raise ConfigError(
            f"{component.__qualname__} is made inside a function, where no other process finds it. Remedy: define the "
            "class at the top of its module"
        )
    return f"{component.__module__}:{component.__qualname__}"


def _plain(value: Any) -> Any:
    """The value as an experiment file would hold it."""
    if isclass(value):
        return _named(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value


def _run_name(model: object, learner: Any) -> str:
    """Such as ``resnet-channel_pruned``."""
    steps = learner if isinstance(learner, list) else [learner]
    names = [step.get("name", step.get("factory", "")) if isinstance(step, Mapping) else str(step) for step in steps]
    short = [name.rpartition(":")[2] for name in names]
    return "-".join([type(model).__name__.strip("_").lower(), *short])


def _add_batch_size(raw: dict[str, Any], train: Any) -> None:
    """A loader's batch size is that of the trainings, unless they say their own."""
    size = getattr(train, "batch_size", None)
    if type(size) is int:
        for section in ("finetune", "teacher"):
            if isinstance(raw.setdefault(section, {}), dict):
                raw[section].setdefault("batch_size", size)
