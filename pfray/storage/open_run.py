"""Run folders before a run begins or continues: checked, then prepared."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pfray.config import strict_yaml
from pfray.errors import RunExists, StorageError, shown
from pfray.search import _state, _trial_log
from pfray.space import CompressionSpace
from pfray.storage.identity import code_differences, differences
from pfray.storage.run_folder import (
    EVENTS,
    EXPERIMENT,
    IDENTITY,
    RESCORE,
    SEARCH,
    SUMMARY,
    TRAINING,
    TUNE,
    VIEWS,
    RunFolder,
)
from pfray.utils.cache import content_key
from pfray.utils.files import read_json, write_atomically, write_json
from pfray.utils.safe_paths import refuse_links_outside

FOLDERS = (SEARCH, RESCORE, TRAINING, EVENTS, TUNE, VIEWS)
SUFFIXES = (".json", ".jsonl", ".yaml", ".html", ".safetensors", ".pt", ".pt2", ".packed", ".tflite", ".pkl")


def check_folder(
    run: RunFolder,
    experiment: Mapping[str, Any],
    *,
    resume: bool,
    force: bool,
    identity: Mapping[str, Any] | None = None,
) -> None:
    """Check the run's folder without changing it.

    experiment: plain data from ``schema.plain``. identity: required of a run to continue; None compares the experiment
    only. Raises RunExists if runs would mix or a run would be lost, StorageError if the folder cannot be read.
    """
    if run.experiment.exists():
        if resume:
            refuse_links_outside(run.path)
            _check_kinds(run)
            _check_same(run, experiment, identity)
        elif not force:
            _refuse_run(run.title, run.is_finished)
    elif run.path.is_dir() and any(not path.name.startswith(".") for path in run.path.iterdir()):
        # The files would be taken for an earlier session's, or be lost to a later --force.
        raise RunExists(f"{run.path} holds files but no run. Remedy: move them away, or name=... for another folder")


def refuse_files(title: str, names: Collection[str], *, resume: bool, force: bool) -> None:
    """As ``check_folder``, of a folder of which only the names of its files are known. Raises RunExists."""
    if EXPERIMENT in names and not (resume or force):
        _refuse_run(title, SUMMARY in names)
    if names and EXPERIMENT not in names:
        raise RunExists(f"{title} holds files but no run. Remedy: move them away, or name=... for another folder")


def open_folder(
    run: RunFolder,
    experiment: Mapping[str, Any],
    *,
    resume: bool,
    force: bool,
    identity: Mapping[str, Any] | None = None,
) -> None:
    """Prepare the run's folder for work. ``force`` removes an earlier run; a damaged result is removed too.

    Takes the arguments of ``check_folder``. Raises RunExists, StorageError.
    """
    check_folder(run, experiment, resume=resume, force=force, identity=identity)
    try:
        if force and run.experiment.exists():
            shutil.rmtree(run.path)
        if run.experiment.exists() and _differing(run, experiment) != []:  # although the identity is the same
            logging.getLogger("pfray").warning("%s is damaged; it is written again", run.experiment)
        # Ray Tune's record of an earlier session is never read, and damage in it would stop Tune.
        shutil.rmtree(run.path / TUNE, ignore_errors=True)
        run.summary.unlink(missing_ok=True)
        run.path.mkdir(parents=True, exist_ok=True)
        write_atomically(run.experiment, strict_yaml.dump(dict(experiment)))
        if identity is not None:
            write_json(run.identity, {**identity, "experiment": _experiment_key(experiment)})
        run.search.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the run folder {run.path} cannot be written ({error.strerror or error}). "
            "Remedy: choose another with storage=..."
        ) from error


def changed_code(run: RunFolder, experiment: Mapping[str, Any]) -> list[str]:
    """Changes since the run that show without model and data: pfray's version, and the code that the experiment names.
    """
    known = read_json(run.identity)
    return [] if known is None else code_differences(known, experiment)


def check_trials(run: RunFolder, space: CompressionSpace, trials: int) -> None:
    """Check that a run to continue has lost no trials. trials: the budget of the search.

    Raises StorageError for damaged trial files, and for missing trials that later files were made from.
    """
    found = _trial_log.read_trials(run.trials, space, trials)
    rescored = _trial_log.read_trials(run.rescored_trials, space, trials)
    chosen = run.made_of_choice()
    begun = [*chosen, *([run.rescored_trials] if rescored else [])]
    finished = _state.saved_trial_count(run.search)
    remedy = "Remedy: put the file back, or --force to begin anew"
    if not found and (finished or begun):
        what = f"the search had finished {finished}" if finished else f"{begun[0]} was made of some"
        state = "holds no trial" if run.trials.exists() else "is missing"
        raise StorageError(f"{run.trials} {state}, and {what}. {remedy}")
    if len(found) < finished and begun:
        raise StorageError(f"{run.trials} holds {len(found)} trials; the search had finished {finished}, and "
                           f"{begun[0]} was made of them. {remedy}")  # fmt: skip
    if chosen and run.rescore.exists() and not rescored:
        raise StorageError(
            f"{run.rescored_trials} is missing or empty, and {chosen[0]} was made of its best plan. {remedy}"
        )


def _refuse_run(title: str, is_finished: bool) -> None:
    state = "finished" if is_finished else "unfinished"
    raise RunExists(
        f"{title} holds a run, {state}. Remedy: --resume to continue it, --force to replace it, or name=..."
    )


def _check_kinds(run: RunFolder) -> None:
    """Raise StorageError for a folder in place of a file, and vice versa."""
    folders = [*(run.path / name for name in FOLDERS), *run.path.glob(f"{TRAINING}/[!.]*")]
    wrong = [path for path in folders if path.suffix not in SUFFIXES and path.exists() and not path.is_dir()]
    if wrong:
        raise StorageError(f"{wrong[0]} is no folder, as a run has it. Remedy: remove it, then continue with --resume")
    inside = [path for path in run.path.rglob("*") if TUNE not in path.relative_to(run.path).parts]
    if others := [path for path in inside if path.suffix in SUFFIXES and not path.is_file()]:
        raise StorageError(f"{others[0]} is no file, as a run has it. Remedy: remove it, then continue with --resume")


def _check_same(run: RunFolder, experiment: Mapping[str, Any], identity: Mapping[str, Any] | None) -> None:
    """Raise RunExists where the run to continue began with another experiment, model, data, code or pfray."""
    remedy = (
        "Remedy: resume with what it began with, use --force to replace it, or name=... "
        f"with --warm-start {run.path} to learn from its trials"
    )
    known = read_json(run.identity)
    if known is None or known.get("experiment") != _experiment_key(experiment):
        _check_same_experiment(run, experiment, remedy)
    if identity is None:
        return
    if known is None:
        # A run killed before its first result has nothing that could mix with another's.
        if any(path.exists() for path in (run.trials, run.path / TRAINING, run.teacher)):
            raise RunExists(
                f"{run.title} holds a run of an earlier version of pfray, or its {IDENTITY} is missing or damaged: "
                f"whether model, data and code are still the same cannot be told. {remedy}"
            )
        return
    if changed := differences(known, identity):
        raise RunExists(
            f"{run.title} holds a run that began with something else; changed: {'; '.join(changed)}. {remedy}"
        )


def _check_same_experiment(run: RunFolder, experiment: Mapping[str, Any], remedy: str) -> None:
    changed = _differing(run, experiment)
    if changed is None:
        raise RunExists(f"{run.experiment} is damaged, so that what it was of cannot be told. {remedy}")
    if changed:
        raise RunExists(
            f"{run.title} holds a run of another experiment; these differ: {', '.join(changed)}. "
            "Remedy: resume with the same file and overrides, use --force to replace it, or name=..."
        )


def _differing(run: RunFolder, experiment: Mapping[str, Any]) -> list[str] | None:
    """Settings in which the saved experiment differs, with both values; None if its file is damaged."""
    new = _compared(experiment)
    old = _read_compared(run.experiment, set(experiment))
    return None if old is None else [change for key in new for change in _changes(key, old.get(key), new[key])]


def _changes(path: str, old: Any, new: Any) -> list[str]:
    """Differing values inside two plain values, each with its path."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and path == "learner":
        old, new = ({str(place): entry for place, entry in enumerate(each)} for each in (old, new))  # a pipeline
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [f"{path} ({shown(new)} instead of {shown(old)})"]
    # The settings of another component are others anyway.
    if old.get("name") != new.get("name"):
        return _changes(f"{path}.name", old.get("name"), new.get("name"))
    unknown = [f"{path}.{key} (no setting)" for key in old if key not in new]
    return unknown + [change for key in new for change in _changes(f"{path}.{key}", old.get(key), new[key])]


def _compared(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """The part that determines a run's results. Storage, resources and expectations may differ when it is continued."""
    plain = strict_yaml.parse(strict_yaml.dump(dict(experiment)))  # as it will be read back
    plain.get("teacher", {}).pop("expect", None)
    plain["resources.precision"] = plain.pop("resources")["precision"]
    del plain["storage"]
    return plain


def _read_compared(saved: Path, sections: set[str]) -> dict[str, Any] | None:
    """``_compared`` of the saved experiment; None if the file is damaged or lacks sections."""
    try:
        raw = strict_yaml.parse(saved.read_text(encoding="utf-8"))
        if not raw.keys() >= sections:
            return None
        raw["resources.precision"] = raw.pop("resources")["precision"]
        raw.get("teacher", {}).pop("expect", None)
        return raw
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _experiment_key(experiment: Mapping[str, Any]) -> str:
    return content_key(json.dumps(_compared(experiment), sort_keys=True))
