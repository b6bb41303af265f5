"""Two processes that train together without Ray, for tests of the exchange of gradients and of learners on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from learners import uniform_quant
from learners.uniform_quant import UniformQuant
from learners.weight_sparse import Settings, WeightSparse
from pfray.config.registry import find_class
from pfray.data import digits
from pfray.learner.base import Algorithm
from pfray.learner.context import Context, Recipe
from pfray.measure.evaluation import evaluate
from pfray.models.lenet import lenet
from pfray.nn.modes import place
from pfray.task import Split, Task
from pfray.training.comm_hooks import distribute
from pfray.training.loop import Shard, fit
from pfray.training.settings import Distributed, Training
from pfray.workflow.worker import TrainingSpec, train_candidate

EPOCHS = 4
TRAINING = Training(epochs=EPOCHS, lr=0.1, batch_size=64)


def on_two_ranks(cases: Mapping[str, Callable[[], Any]], folder: Path) -> dict[str, list[Any]]:
    """Results of each case in each of two processes of one gloo group. Cases are picklable, their results tensors."""
    torch.multiprocessing.spawn(_run, (dict(cases), folder), nprocs=2)
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return {name: [results[name] for results in ranks] for name in cases}


def _run(rank: int, cases: dict[str, Callable[[], Any]], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    torch.save({name: case() for name, case in cases.items()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def small_digits() -> Task:
    """Digits of 8 x 8, so that what is trained is small and a step is quick."""
    task = digits.build()
    small = {
        name: Split(getattr(task, name).inputs[:, :, ::4, ::4].contiguous(), getattr(task, name).targets)
        for name in ("train", "validation", "test")
    }
    # Shifts that suit 32 x 32 would push these out of the image.
    return replace(task, **small, augment=None)


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def train(settings: Distributed) -> dict[str, Any]:
    """A small network's training: weights, accuracy, bytes, and the weights after it was continued from half way."""
    task, model = small_digits(), perceptron()
    middle: dict[str, Any] = {}
    wrapped, exchange = distribute(model, settings, 0)

    def keep(epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        if epoch == EPOCHS // 2:
            states = (model.state_dict(), optimizer.state_dict(), exchange.state_dict())
            middle.update(zip(("model", "optimizer", "exchange"), copy.deepcopy(states), strict=True))

    _fit(wrapped, task, on_epoch=keep)
    again = perceptron()
    again.load_state_dict(middle["model"])
    wrapped, resumed = distribute(again, settings, 0)
    resumed.load_state_dict(middle["exchange"])
    _fit(wrapped, task, start_epoch=EPOCHS // 2, optimizer_state=middle["optimizer"])
    return {
        "weights": weights(model),
        "resumed": weights(again),
        "accuracy": evaluate(model, task, task.test).accuracy,
        "sent_bytes": exchange.sent_bytes,
        "bytes_of_float32": 4 * len(weights(model)) * EPOCHS * (len(task.train) // TRAINING.batch_size),
    }


def normalized(shared: bool) -> dict[str, Tensor]:
    """The state of a network with batch norms after three steps."""
    task, model = small_digits(), with_norms()
    wrapped, _ = distribute(model, Distributed(sync_batch_norm=shared), 0)
    _fit(wrapped, task, steps=3)
    return model.state_dict()


def with_norms() -> nn.Module:
    torch.manual_seed(0)
    # The inputs' mean is far from zero, where a variance of poor arithmetic shows.
    first = nn.Conv2d(1, 6, 3)
    nn.init.constant_(first.bias, 10.0)
    return nn.Sequential(
        first, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 16), nn.BatchNorm1d(16, momentum=None),
        nn.Linear(16, 10),
    )  # fmt: skip


def learned(name: str, settings: Mapping[str, Any], hook_of_exchange: str) -> dict[str, Tensor]:
    """All weights and the parameters of their levels of a LeNet that ``name`` compressed, after a training."""
    task = digits.build()
    torch.manual_seed(0)
    teacher = place(lenet(in_channels=1), "cpu")
    kind: type[Algorithm] = find_class("learner", name, Algorithm)
    algorithm, steps = kind(teacher, task, kind.settings_type(**settings)), 10
    space = algorithm.space()
    plan = {}
    if len(space):
        unit = next(iter(space.costs_at([1.0] * len(space))))
        plan = space.uniform({unit: sum(space.reachable(unit)) / 2})
    start = algorithm.finish(plan) if algorithm.has_finish else algorithm.compress(plan, steps)
    model = start.model
    wrapped, _ = distribute(model, Distributed(comm_hook=hook_of_exchange), 0)
    _fit(wrapped, task, steps=steps, hook=start.hook)
    levels = {key: value for key, value in model.named_buffers() if key.split(".")[-1].startswith("weight_")}
    return {**{key: value.detach() for key, value in model.named_parameters()}, **levels}


def planned(folder: Path, lr: float, scale_lr: bool) -> Tensor:
    """The weights after an epoch, half of them gone."""
    training = TRAINING.model_copy(update={"epochs": 1, "lr": lr})
    teacher, task = place(perceptron(), "cpu"), small_digits()
    plan = WeightSparse(teacher, task).space().uniform({"sparsity": 0.5})
    candidate = Recipe(WeightSparse, Settings(), training).candidate(plan)
    spec = TrainingSpec(candidate, Context(task, teacher), folder, distributed=Distributed(scale_lr=scale_lr))
    shard = Shard(dist.get_rank(), dist.get_world_size())
    return weights(train_candidate(spec, shard, torch.device("cpu"), None, lambda state: None))


def averaged(folder: Path, average: str | float) -> Tensor:
    """The weights after an epoch of straight-through training, averaged."""
    training = TRAINING.model_copy(update={"epochs": 1, "average": average})
    teacher, task = place(with_norms(), "cpu"), small_digits()
    settings = uniform_quant.Settings(ends=True)
    plan = dict.fromkeys(UniformQuant(teacher, task, settings).space().names, 3.0)
    spec = TrainingSpec(Recipe(UniformQuant, settings, training).candidate(plan), Context(task, teacher), folder)
    shard = Shard(dist.get_rank(), dist.get_world_size())
    saved: list[dict[str, Any]] = []
    model = train_candidate(spec, shard, torch.device("cpu"), None, lambda state: saved.append(copy.deepcopy(state)))
    statistics = torch.cat([buffer.flatten() for name, buffer in model.named_buffers() if "running" in name])
    # What several workers are asked for in the end is the last state.
    assert all(torch.equal(saved[-1]["model"][name], value) for name, value in model.state_dict().items())
    return torch.cat([weights(model), statistics])


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _fit(model: nn.Module, task: Task, **options: Any) -> None:
    fit(model, task, TRAINING, seed=0, shard=Shard(dist.get_rank(), dist.get_world_size()), **options)
