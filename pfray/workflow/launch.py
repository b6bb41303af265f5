"""Full-data training on the cluster, of the teacher and of chosen plans.

``worker.py`` trains within one worker. This module starts the workers, keeps a checkpoint after every epoch, and
resumes. Several workers run through Ray Train. A single one is a plain task, whose process Ray reuses: a training of
Ray Train starts two processes, which takes 6 s before the first step.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from torch import Tensor, nn

from pfray.errors import TrainingFailed, UserCodeFailed, first_line
from pfray.learner.build import Weights, finish_candidate
from pfray.learner.context import Candidate, Context
from pfray.storage.run_folder import curve_of, running_of, traceback_of
from pfray.training import checkpoints
from pfray.training.checkpoints import EXCHANGE, STATE
from pfray.training.loop import Shard
from pfray.training.settings import Distributed
from pfray.utils.files import read_records, write_atomically
from pfray.utils.session_folder import scratch_folder
from pfray.utils.user_code import failing_user_code
from pfray.workflow.curve import (
    Report,
    add_line,
    read_lines,
    report_epochs,
    report_running,
    report_words,
    write_words,
)
from pfray.workflow.worker import TrainingSpec, train_candidate
from pfray.workflow.worker_errors import as_pfray_error, keep_traceback

# Times that lost workers are replaced, and the training continues from the last epoch's checkpoint.
RETRIES = 2


def _say_nothing(done: float, loss: float | None, words: str) -> None:
    """The report of a training that nobody watches."""


def retrain(
    candidate: Candidate,
    context: ray.ObjectRef,
    folder: Path,
    *,
    start: ray.ObjectRef | None = None,
    before: ray.ObjectRef | None = None,
    made_from: str = "",
    workers: int = 1,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0,
    distributed: Distributed | None = None,
    views: Path | None = None,
    on_progress: Report = _say_nothing,
) -> dict[str, Tensor]:
    """State dict after the last epoch of training the candidate's model on all training data.

    context: a Context in Ray's object store. start: the Weights that ``finish`` gave, likewise;
    before: those of a milder plan that ``compress`` goes on from. views: folder for ``distill.cached_views``.
    folder: for the checkpoints and the curve (epoch, loss). A training continues from its last checkpoint of the same
    ``made_from``. The curve also has the pace of each epoch and, with several workers, the bytes of gradients that each
    sent. on_progress is called from the calling thread after each epoch, and every few seconds within a long one.
    Raises TrainingFailed.
    """
    traceback_of(folder).unlink(missing_ok=True)
    running_of(folder).unlink(missing_ok=True)
    _clean_curve(folder, checkpoints.epochs_done(folder, made_from, alone=workers == 1))
    config = {
        "candidate": candidate,
        "context": context,
        "start": start,
        "before": before,
        "made_from": made_from,
        "folder": folder,
        "distributed": distributed or Distributed(),
        "views": views,
    }
    train_all = train_alone if workers == 1 else partial(_train_together, workers=workers)
    epochs, told = 0, 0.0
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(train_all, config, cpus_per_worker, gpus_per_worker)
        while not future.done():
            wait([future], timeout=0.5)
            epochs = report_epochs(folder, epochs, on_progress)
            told = report_running(folder, max(epochs, told), on_progress)
        report_epochs(folder, epochs, on_progress)
        try:
            return future.result()
        except (train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise as_pfray_error(error, folder) from error


def run_together(actions: Sequence[Callable[[], None]], at_once: int) -> None:
    """Run the actions in threads, ``at_once`` at a time, and raise the first error once all have ended.

    Never in the main thread, where Ray Train takes over Ctrl-C and then ends the process by itself.
    """
    pool = ThreadPoolExecutor(at_once)
    futures = [pool.submit(action) for action in actions]
    try:
        while wait(futures, timeout=0.5).not_done:
            pass
    except KeyboardInterrupt:
        # The threads wait for Ray and cannot be stopped. The handler of this exception has to end the process.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    for future in futures:
        future.result()


def finish(
    candidate: Candidate,
    context: ray.ObjectRef,
    folder: Path,
    start: ray.ObjectRef | None,
    cpus: int,
    gpus: float,
    on_progress: Report = _say_nothing,
) -> Weights:
    """Weights from the algorithm's ``finish``, computed in a Ray task.

    folder: of the training that follows. start: an earlier stage's (Candidate, Weights) in Ray's object store.
    on_progress: called with the algorithm's words on where it is. Raises the task's own PfrayError, or TrainingFailed.
    """
    traceback_of(folder).unlink(missing_ok=True)
    running_of(folder).unlink(missing_ok=True)
    told = ""
    try:
        task = ray.remote(num_cpus=cpus, num_gpus=gpus)(_finish)
        named = task.options(name=f"{candidate.algorithm.__name__}.finish")
        done = named.remote(candidate, context, start, cpus, folder)
        while not ray.wait([done], timeout=0.5)[0]:
            told = report_words(folder, told, on_progress)
        return ray.get(done)
    except ray.exceptions.RayError as error:
        raise as_pfray_error(error, folder) from error


def _finish(
    candidate: Candidate, context: Context, start: tuple[Candidate, Weights] | None, cpus: int, folder: Path
) -> Weights:
    torch.set_num_threads(cpus)
    with failing_user_code():  # here, because a traceback does not leave its worker
        done = finish_candidate(candidate, context, start, task_device(), partial(write_words, folder))
    # As it will be read from a file: what JSON cannot hold, or changes, shows before the training and not after it.
    structure = json.loads(json.dumps(done.structure))
    return Weights(structure, _on_cpu(done.model))


def train_alone(config: dict[str, Any], cpus: int, gpus: float) -> dict[str, Tensor]:
    """State dict from a training on one worker, a plain Ray task. config: fields of ``TrainingSpec``."""
    # Retried here, because Ray itself would retry for ever if a worker is killed for its use of memory.
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(work_alone)
    named = task.options(name=f"{config['candidate'].algorithm.__name__}.train")
    for _ in range(RETRIES):
        try:
            return ray.get(named.remote(config, cpus))
        except ray.exceptions.RayTaskError:
            raise  # the training's own error
        except ray.exceptions.RayError as error:
            logging.getLogger("pfray").warning("a training lost its worker and goes on: %s", first_line(error))
    return ray.get(named.remote(config, cpus))


def work_alone(config: dict[str, Any], cpus: int) -> dict[str, Tensor]:
    """Train in a worker that is alone. Returns the state dict, on the CPU."""
    torch.set_num_threads(cpus)
    path = config["folder"] / STATE
    state = checkpoints.load_training(path, config["made_from"]) if path.exists() else None
    with failing_user_code():
        model = train_candidate(_training_spec(config), Shard(), task_device(), state, partial(checkpoints.save, path))
    return _on_cpu(model)


def _train_together(config: dict[str, Any], cpus: int, gpus: float, workers: int) -> dict[str, Tensor]:
    folder = config["folder"]
    # A worker's report waits for the next look at it, by default up to two seconds: longer than a small model's epoch.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    trainer = TorchTrainer(
        _work_together,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(max_failures=RETRIES),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        checkpoint = trainer.fit().checkpoint
    except train.TrainingFailedError as error:
        if errors := read_lines(folder, "error"):
            keep_traceback(error, folder)
            raise UserCodeFailed(f"{errors[-1]['error']}; the traceback is in {traceback_of(folder)}") from None
        raise
    if errors := read_lines(folder, "error"):
        raise TrainingFailed(errors[-1]["error"])
    assert checkpoint is not None
    with checkpoint.as_directory() as directory:
        return checkpoints.load_training(Path(directory) / STATE, config["made_from"])["model"]


def _work_together(config: dict[str, Any]) -> None:
    """Train in one of Ray Train's workers."""
    context = train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    device, state = get_device(), None
    if (checkpoint := train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as directory:
            state = checkpoints.load_training(Path(directory) / STATE, config["made_from"], device)
            own = Path(directory) / EXCHANGE.format(rank=shard.rank)
            state["exchange"] = checkpoints.load(own, device) if own.exists() else {}

    def save(state: dict[str, Any]) -> None:
        with scratch_folder() as directory:
            kept = state.pop("exchange")
            if kept:
                checkpoints.save(Path(directory) / EXCHANGE.format(rank=shard.rank), kept)
            if shard.rank == 0:
                checkpoints.save(Path(directory) / STATE, state)
            # Ray Train merges the files of all workers into one checkpoint.
            checkpoint = Checkpoint.from_directory(directory) if kept or shard.rank == 0 else None
            train.report({"epoch": state["epoch"], "loss": state["loss"]}, checkpoint=checkpoint)

    try:
        with failing_user_code():
            train_candidate(_training_spec(config), shard, device, state, save)
    except TrainingFailed as error:
        # All ranks see the same loss and stop here together. An exception would make Ray Train retry the training.
        if shard.rank == 0:
            add_line(config["folder"], error=str(error))
    except UserCodeFailed as error:
        # On any rank alone: the others wait for it, and Ray Train ends them.
        add_line(config["folder"], error=str(error))
        raise


def _training_spec(config: dict[str, Any]) -> TrainingSpec:
    """The training, with its objects fetched from Ray's object store."""
    fetched = {name: ray.get(value) for name, value in config.items() if isinstance(value, ray.ObjectRef)}
    return TrainingSpec(**{**config, **fetched})


def _clean_curve(folder: Path, done: int) -> None:
    """Keep only the curve's lines of the ``done`` epochs; an earlier session's error no longer holds."""
    path = curve_of(folder)
    records, unreadable = read_records(path) if path.exists() else ([], 0)
    epochs = [entry for entry in read_lines(folder, "epoch") if 1 <= entry["epoch"] <= done]
    others = len(read_lines(folder, "error")) + len(read_lines(folder, "note"))
    write_atomically(path, "".join(json.dumps(entry) + "\n" for entry in epochs))
    left_out = len(records) + unreadable - len(epochs) - others
    if left_out and done:
        logging.getLogger("pfray").warning("%s: %d lines cannot be used and are left out", path, left_out)


def task_device() -> torch.device:
    """Device of the current Ray task: ``cuda`` if Ray gave it a graphics processor."""
    return torch.device("cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu")


def _on_cpu(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in model.state_dict().items()}
