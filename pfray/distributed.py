"""Full-data training through Ray Train: the teacher's, and the retraining of a chosen plan.

The loop is ``train.fit``, unchanged; here are only the workers around it, a checkpoint after every epoch, and resuming.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from pfray.communication import distribute
from pfray.compressed import build_compressed, finished, restored
from pfray.config import Distributed
from pfray.errors import PfrayError, TrainingFailed, first_line
from pfray.files import read_records, write_atomically
from pfray.job import Job, updated
from pfray.learner import Learner
from pfray.measure import place
from pfray.space import Plan
from pfray.train import Shard, StatefulHook, choose_precision, fit, steps_per_epoch

STATE = "state.pt"
# Of each worker, what its exchange of gradients has to remember.
EXCHANGE = "exchange-{rank}.pt"
CURVE = "curve.jsonl"

# Lost workers are replaced, and the training goes on from the last epoch's checkpoint, this many times.
RETRIES = 2


class LeanTrainer(TorchTrainer):
    """Without two of Ray Train's helpers, each a process that takes 1.5 s of a processor to start: one hands out Ray
    datasets, of which there are none; the other frees the resources of a controller that dies while its driver lives
    on, where a run ends. They are named and not imported: another version of Ray that has none is as welcome.
    """

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()  # type: ignore[misc]
        spared = ("DatasetsCallback", "PlacementGroupCleanerCallback")
        return [each for each in made if type(each).__name__ not in spared]


def retrain(
    learner: type[Learner],
    job: ray.ObjectRef,
    plan: Plan,
    folder: Path,
    *,
    start: ray.ObjectRef | None = None,
    workers: int = 1,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0,
    distributed: Distributed | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Compress the teacher by ``plan``, train it on all training data, and return the last epoch's state dict.

    start: the state dict that ``finish`` gave, for the learners that have it.
    folder: where checkpoints and ``curve.jsonl`` (epoch, loss) are kept; a training that finds its own checkpoints
    there continues from the last one. Of several workers, ``curve.jsonl`` also has the bytes of gradients that each
    sent in the epoch. on_epoch(epochs done, loss) is called in this process, from the calling thread.
    Raises TrainingFailed.
    """
    # A worker's report waits for the next look at it, by default up to two seconds: longer than a small model's epoch.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    if len(ray.nodes()) == 1:
        # One machine is not taken away from under a run, and the watcher is one more process to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    folder.mkdir(parents=True, exist_ok=True)
    _forget_torn_snapshot(folder)
    # Only what an earlier session trained stays; why it failed is no longer true.
    epochs = "".join(json.dumps(entry) + "\n" for entry in _read_lines(folder, "epoch"))
    write_atomically(folder / CURVE, epochs)
    trainer = LeanTrainer(
        _train_worker,
        train_loop_config={
            "learner": learner,
            "job": job,
            "plan": plan,
            "start": start,
            "folder": str(folder),
            "distributed": distributed or Distributed(),
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus_per_worker > 0,
            resources_per_worker={"CPU": cpus_per_worker, **({"GPU": gpus_per_worker} if gpus_per_worker else {})},
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(max_failures=RETRIES),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    seen = 0
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(trainer.fit)
        while not future.done():
            wait([future], timeout=0.5)
            seen = _report_new(folder, seen, on_epoch)
        _report_new(folder, seen, on_epoch)
        try:
            result = future.result()
        except train.TrainingFailedError as error:
            raise _as_pfray_error(error) from error
    if errors := _read_lines(folder, "error"):
        raise TrainingFailed(errors[-1]["error"])
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as directory:
        return torch.load(Path(directory) / STATE, weights_only=True, map_location="cpu")["model"]


def _forget_torn_snapshot(folder: Path) -> None:
    """Ray Train's list of checkpoints, where a run was killed while it was written, which Ray does in place.

    The training then begins anew, instead of not at all.
    """
    snapshot = folder / "checkpoint_manager_snapshot.json"
    if not snapshot.exists():
        return
    try:
        json.loads(snapshot.read_text(encoding="utf-8"))
    except ValueError:
        logging.getLogger("pfray").warning("%s is damaged; this training begins anew", snapshot)
        snapshot.unlink()


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
        # The threads wait for Ray and cannot be stopped; whoever handles this has to end the process.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    for future in futures:
        future.result()


def finish(
    learner: type[Learner],
    job: ray.ObjectRef,
    plan: Plan,
    before: tuple[Plan, ray.ObjectRef] | None,
    cpus: int,
    gpus: float,
) -> dict[str, torch.Tensor]:
    """The state dict of ``learner.finish``, computed in a Ray task. before: an earlier stage's plan and state dict.

    Raises the task's own PfrayError, or TrainingFailed.
    """
    try:
        task = ray.remote(num_cpus=cpus, num_gpus=gpus)(_finish).options(name=f"{learner.__name__}.finish")
        return ray.get(task.remote(learner, job, plan, before, cpus))
    except ray.exceptions.RayError as error:
        raise _as_pfray_error(error) from error


def _finish(
    learner: type[Learner], job: Job, plan: Plan, before: tuple[Plan, ray.ObjectRef] | None, cpus: int
) -> dict[str, torch.Tensor]:
    torch.set_num_threads(cpus)
    device = torch.device("cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu")
    known = None if before is None else (before[0], ray.get(before[1]))
    return {k: v.cpu() for k, v in finished(learner, job, plan, known, device).state_dict().items()}


def _train_worker(config: dict[str, Any]) -> None:
    """What each worker of the training runs."""
    whole: Job = ray.get(config["job"])
    job, _ = whole.for_plan(config["plan"])
    context = train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    device = get_device()
    torch.manual_seed(job.seed)
    steps = job.training.epochs * steps_per_epoch(job.task.train, job.training.batch_size)
    if config["start"] is None:
        model, hook = build_compressed(config["learner"], whole, config["plan"], device, steps)
    else:
        model, hook = restored(config["learner"], whole, config["plan"], ray.get(config["start"]), device), None
    start_epoch, optimizer_state, exchange_state = 0, None, None
    if (checkpoint := train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as directory:
            state = torch.load(Path(directory) / STATE, weights_only=True, map_location=device)
            if (own := Path(directory) / EXCHANGE.format(rank=shard.rank)).exists():
                exchange_state = torch.load(own, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        start_epoch, optimizer_state = state["epoch"], state["optimizer"]
        if isinstance(hook, StatefulHook):
            hook.load_state_dict(state["hook"])
    trained, exchange, training = model, None, job.training
    if shard.world > 1:
        settings: Distributed = config["distributed"]
        trained, exchange = distribute(model, settings, job.seed)
        if exchange_state is not None:
            exchange.load_state_dict(exchange_state)
        if settings.scale_lr:
            training = updated(training, {"lr": training.lr * shard.world})
    sent_bytes = 0

    def write(**entry: float | str) -> None:
        with (Path(config["folder"]) / CURVE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def save(epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        nonlocal sent_bytes
        with tempfile.TemporaryDirectory() as directory:
            kept = {} if exchange is None else exchange.state_dict()
            if kept:
                torch.save(kept, Path(directory) / EXCHANGE.format(rank=shard.rank))
            if shard.rank == 0:
                state = {
                    "model": model.state_dict(),
                    "epoch": epoch,
                    "optimizer": optimizer.state_dict(),
                    "hook": hook.state_dict() if isinstance(hook, StatefulHook) else {},
                }
                torch.save(state, Path(directory) / STATE)
            # Ray Train makes one checkpoint of all workers' files.
            checkpoint = Checkpoint.from_directory(directory) if kept or shard.rank == 0 else None
            train.report({"epoch": epoch, "loss": loss}, checkpoint=checkpoint)
        if shard.rank == 0:
            sent = {} if exchange is None else {"sent_bytes": exchange.sent_bytes - sent_bytes}
            write(epoch=epoch, loss=loss, **sent)
        sent_bytes = 0 if exchange is None else exchange.sent_bytes

    try:
        fit(
            trained,
            job.task,
            training,
            seed=job.seed,
            precision=choose_precision(model, device, job.precision),
            teacher=place(job.teacher, device) if job.distill.weight else None,
            distill=job.distill,
            hook=hook,
            start_epoch=start_epoch,
            optimizer_state=optimizer_state,
            on_epoch=save,
            shard=shard,
        )
    except TrainingFailed as error:
        # All ranks see the same loss and stop here together. Raising instead would make Ray Train try it all again.
        if shard.rank == 0:
            write(error=str(error))


def read_curve(folder: Path) -> list[dict[str, float]]:
    """(epoch, loss) of the training in ``folder`` so far; of an epoch run again after a fault, the last time."""
    return sorted({e["epoch"]: e for e in _read_lines(folder, "epoch")}.values(), key=lambda entry: entry["epoch"])


def _read_lines(folder: Path, key: str) -> list[dict[str, Any]]:
    """The whole lines of the curve's file that have ``key``; the last one may still be in writing."""
    path = folder / CURVE
    return [entry for entry in read_records(path)[0] if key in entry] if path.exists() else []


def _report_new(folder: Path, seen: int, on_epoch: Callable[[int, float], None] | None) -> int:
    """Call ``on_epoch`` for every epoch past ``seen``; returns the last one."""
    curve = read_curve(folder)
    for entry in curve:
        if on_epoch is not None and entry["epoch"] > seen:
            on_epoch(int(entry["epoch"]), entry["loss"])
    return int(curve[-1]["epoch"]) if curve else seen


def _as_pfray_error(error: Exception) -> PfrayError:
    """The cause in a worker, without the traceback that Ray wraps around it."""
    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    cause = causes[0]
    while getattr(cause, "cause", None) is not None or getattr(cause, "__cause__", None) is not None:
        cause = getattr(cause, "cause", None) or cause.__cause__
    if isinstance(cause, PfrayError):
        return cause
    return TrainingFailed(f"training failed: {first_line(cause)}. Remedy: see the traceback in Ray's worker log")
