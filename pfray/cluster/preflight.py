"""Check of a cluster's other machines before the first trial: can they do the run's work?

A trial gets the data and the teacher through Ray's object store, so no machine needs their files. A machine needs the
modules of the data, the teacher and the learner, and for a retraining the run's folder, which holds the checkpoints.
"""

from __future__ import annotations

import contextlib
import pickle
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pfray.errors import ClusterError, StorageError, first_line
from pfray.task import Task

# Seconds to wait for the machines' answers. A machine that takes longer to start a process is not checked.
ANSWER_TIMEOUT = 25.0


def check_nodes(task: Task, used: Any, folder: Path) -> None:
    """Ask every other machine to load the code of a trial, and to find ``folder``.

    used: learner, settings and model. Raises ClusterError for everything that a machine lacks, StorageError if
    ``folder`` cannot be written here.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != here and n["Resources"].get("CPU", 0) > 0]
    if not others:
        return
    # All of the code, and hardly any data.
    example = task.train.head(1)
    small = replace(task, train=example, validation=example, test=example)
    pickled = ray.cloudpickle.dumps((small, used))
    mark = folder / f".{uuid.uuid4().hex}.here"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}). Remedy: storage=... elsewhere") from error
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(find_missing)
        asked = {
            look.options(
                name=f"look at {node['NodeManagerAddress']}",
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(pickled, str(mark)): node["NodeManagerAddress"]
            for node in others
        }
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_TIMEOUT)
        lacking = {asked[answer]: problem for answer in ready if (problem := _answer(answer))}
    finally:
        with contextlib.suppress(OSError):
            mark.unlink()
    if lacking:
        raise ClusterError("\n".join(f"the machine {name}: {problem}" for name, problem in sorted(lacking.items())))


def find_missing(pickled: bytes, mark: str) -> str | None:
    """Reason why this machine cannot do the run's work, and the remedy; None if it can."""
    try:
        pickle.loads(pickled)
    except Exception as error:
        return (
            f"what a trial needs cannot be loaded ({type(error).__name__}: {first_line(error)}). Remedy: the code at "
            "the same path on all machines, or python -m pfray.submit, which sends it along"
        )
    if not Path(mark).exists():
        return (
            f"the folder {Path(mark).parent} is another one there, or none. Remedy: storage=... in a folder that all "
            "machines share (of a storage that is a URL: PFRAY_CACHE)"
        )
    return None


def _answer(answer: ray.ObjectRef) -> str | None:
    try:
        return ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        return (
            f"pfray itself does not work ({first_line(error.cause or error)}). Remedy: the same pfray on all machines"
        )
    except ray.exceptions.RayError:
        return None  # lost meanwhile: its trials go to others
