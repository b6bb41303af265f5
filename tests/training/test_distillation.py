"""Trainings beside a teacher: features that are mimicked, and soft labels that are read again."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from pfray.data._loaders import streamed
from pfray.task import Task
from pfray.training.comm_hooks import distribute
from pfray.training.features import Features, relative_error
from pfray.training.loop import Shard, fit
from pfray.training.settings import Distill, Distributed, Training
from tests.training.toy import Shifted, equal, net, toy_task
from tests.two_ranks import on_two_ranks

QUICK = Training(epochs=4, lr=0.05, batch_size=10)
MIMIC = Distill(features=2.0)
CACHED = Distill(weight=0.5, cached_views=2)


def narrow(seed: int = 0) -> nn.Module:
    """``net`` with three channels of four."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 9, 40)
    )


def bare(seed: int) -> nn.Module:
    """``net`` without its batch norm."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 40))


@pytest.fixture
def noisy(task) -> Task:
    """Each batch is moved by a number of pixels."""
    return replace(task, augment=moved)


def moved(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs.roll(int(torch.randint(0, 8, (), generator=generator)), dims=3)


class Counted(nn.Sequential):
    """A network whose batches are counted, leaving out those of one sample."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += len(x) > 1
        return super().forward(x)


def test_the_loss_of_the_first_step_has_the_features_error_at_its_whole_weight(task):
    teacher, student = net(1).eval(), net(2)
    inputs = task.normalize(task.train.inputs)
    with torch.no_grad():
        own, theirs = (F.relu(model[1](model[0](inputs))) for model in (copy.deepcopy(student), teacher))
        error = (own - theirs).square().sum() / theirs.square().sum()
        hard = F.cross_entropy(copy.deepcopy(student)(inputs), task.train.targets)
    losses: list[float] = []
    fit(
        student, task, QUICK.model_copy(update={"epochs": 1, "batch_size": 40}), seed=0, teacher=teacher, distill=MIMIC,
        on_epoch=lambda epoch, loss, optimizer: losses.append(loss),
    )  # fmt: skip
    assert losses == pytest.approx([hard.item() + 2 * error.item()], rel=1e-5)


def test_features_alone_bring_the_student_to_the_teachers(task):
    silent = replace(task, loss=lambda outputs, targets: 0 * outputs.sum())
    inputs = task.normalize(task.train.inputs)
    teacher, errors = bare(1), {}
    for weight in (0, 2):
        student = bare(2)
        fit(
            student, silent, QUICK.model_copy(update={"epochs": 40}), seed=0, teacher=teacher,
            distill=Distill(features=weight),
        )  # fmt: skip
        with torch.no_grad():
            errors[weight] = relative_error(student[:2](inputs), teacher[:2](inputs)).item()
    assert errors[0] > 0.5
    assert errors[2] < 0.1 * errors[0]


def test_the_teacher_is_asked_for_features_in_the_first_half_only(task):
    teacher = Counted(*net(1))
    fit(net(2), task, QUICK, seed=0, teacher=teacher, distill=MIMIC)
    assert teacher.calls == 8  # of 16 steps
    assert not any(module._forward_hooks for module in teacher.modules())


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("student", [net, narrow])
def test_a_continued_training_with_features_ends_with_the_same_bits(noisy, student, stop):
    saved: dict[str, dict] = {}

    def keep(epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        if epoch == stop:
            saved["model"], saved["optimizer"] = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))

    teacher, whole, continued = net(5), student(0), student(1)
    fit(whole, noisy, QUICK, seed=0, teacher=teacher, distill=MIMIC, on_epoch=keep)
    assert ("adapters" in saved["optimizer"]) == (student is narrow)
    assert saved["model"].keys() == student(0).state_dict().keys()
    continued.load_state_dict(saved["model"])
    fit(
        continued, noisy, QUICK, seed=0, teacher=teacher, distill=MIMIC, start_epoch=stop,
        optimizer_state=saved["optimizer"],
    )  # fmt: skip
    assert equal(whole, continued)
    if student is narrow and stop == 1:
        saved["optimizer"]["adapters"] = Features(whole, teacher, torch.randn(1, 1, 8, 8), 9).adapters.state_dict()
        other = student(1)
        other.load_state_dict(saved["model"])
        fit(
            other, noisy, QUICK, seed=0, teacher=teacher, distill=MIMIC, start_epoch=stop,
            optimizer_state=saved["optimizer"],
        )  # fmt: skip
        assert not equal(whole, other)  # so the adapters' weights do matter


def test_with_cached_views_epochs_repeat_and_the_teacher_answers_each_batch_once(noisy, tmp_path):
    seen: list[Tensor] = []
    teacher = Counted(*net(5))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets.clone())
        return F.cross_entropy(outputs, targets)

    read = replace(noisy, loss=loss)
    fit(net(), read, QUICK, seed=0, teacher=teacher, distill=CACHED, views=tmp_path)
    assert teacher.calls == 8  # two views of four batches, in 16 steps
    epochs = [torch.cat(seen[first : first + 4]) for first in range(0, 16, 4)]
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[1], epochs[3])
    assert not torch.equal(epochs[0], epochs[1])
    # Without a folder, as in a trial, each epoch is another.
    seen.clear()
    fit(net(), read, QUICK, seed=0, teacher=teacher, distill=CACHED)
    assert teacher.calls == 8 + 16
    assert not torch.equal(torch.cat(seen[:4]), torch.cat(seen[8:12]))


def test_the_first_epochs_are_those_of_a_training_without_cached_views(noisy, tmp_path):
    once = QUICK.model_copy(update={"epochs": 2})
    cached, plain = net(), net()
    fit(cached, noisy, once, seed=0, teacher=net(5), distill=CACHED, views=tmp_path)
    fit(plain, noisy, once, seed=0, teacher=net(5), distill=Distill(weight=0.5))
    for one, other in zip(cached.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-3)  # but for the labels' float16


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("lost", [False, True])
def test_a_continued_training_with_cached_views_ends_with_the_same_bits(noisy, tmp_path, stop, lost):
    saved: dict[str, dict] = {}

    def keep(epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        if epoch == stop:
            saved["model"], saved["optimizer"] = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))

    both = CACHED.model_copy(update={"features": 1.0})
    whole, continued = net(), net(1)
    fit(whole, noisy, QUICK, seed=0, teacher=net(5), distill=both, views=tmp_path / "views", on_epoch=keep)
    continued.load_state_dict(saved["model"])
    views = tmp_path / ("other" if lost else "views")
    fit(
        continued, noisy, QUICK, seed=0, teacher=net(5), distill=both, views=views, start_epoch=stop,
        optimizer_state=saved["optimizer"],
    )  # fmt: skip
    assert equal(whole, continued)


@pytest.mark.parametrize("loaders", [0, 2])
def test_images_that_are_augmented_where_they_are_read_have_cached_views_too(task, tmp_path, loaders):
    read = replace(task, train=replace(streamed("train", Shifted(task), tuple, 0, default_collate), loaders=loaders))
    teacher = Counted(*net(5))
    fit(net(), read, QUICK, seed=0, teacher=teacher, distill=CACHED, views=tmp_path)
    assert teacher.calls == 8


def together(folder: Path) -> dict[str, Tensor]:
    """A narrow student's training on one of two ranks, and what was continued from its second epoch."""
    shard, saved = Shard(dist.get_rank(), dist.get_world_size()), {}
    task = replace(toy_task(), augment=moved)
    distill = Distill(weight=0.5, features=2.0, cached_views=2)
    teacher, model, again = Counted(*net(5)), narrow(0), narrow(1)

    def train(model: nn.Module, **options) -> None:
        wrapped, _ = distribute(model, Distributed(), 0)
        fit(wrapped, task, QUICK, seed=0, teacher=teacher, distill=distill, shard=shard, views=folder, **options)

    def keep(epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        saved[epoch] = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    train(model, on_epoch=keep)
    asked = teacher.calls
    again.load_state_dict(saved[2][0])
    train(again, start_epoch=2, optimizer_state=saved[2][1])
    return {
        "asked": torch.tensor([asked, teacher.calls]), "model": flat(model.state_dict()),
        "again": flat(again.state_dict()), "early": flat(saved[1][1]["adapters"]),
        "adapters": flat(saved[4][1]["adapters"]),
    }  # fmt: skip


def flat(state: dict[str, Tensor]) -> Tensor:
    """All weights of a state dict, without statistics, which each worker has of its own."""
    return torch.cat([value.flatten() for name, value in state.items() if name.endswith(("weight", "bias"))])


def test_two_workers_keep_the_same_adapters_and_each_its_own_labels(tmp_path):
    one, other = on_two_ranks({"together": partial(together, tmp_path / "views")}, tmp_path)["together"]
    for rank in (one, other):
        assert rank["asked"].tolist() == [8, 8]  # its part of four batches of two views, and nothing again
        assert torch.equal(rank["model"], rank["again"])
        assert torch.equal(rank["model"], one["model"])
        assert torch.equal(rank["adapters"], one["adapters"])
    begun = Features(narrow(), net(5), torch.randn(1, 1, 8, 8), 0).adapters
    assert (one["early"] - flat(begun.state_dict())).abs().max() > 1e-3
    assert len(list((tmp_path / "views").rglob("*.safetensors"))) == 4
