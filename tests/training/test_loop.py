from __future__ import annotations

import copy
import math
import multiprocessing
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from pfray.data._loaders import streamed
from pfray.errors import TrainingFailed
from pfray.models.lenet import lenet
from pfray.models.mobilenet import mobilenet_v1
from pfray.task import Task, soft_cross_entropy
from pfray.training import loop
from pfray.training.loop import Shard, choose_precision, fit, schedule
from pfray.training.pace import Pace
from pfray.training.settings import Distill, Training
from tests.training.toy import Shifted, equal, net

QUICK = Training(epochs=3, lr=0.05, batch_size=10)


def test_the_learning_rate_rises_over_the_warm_up_then_falls_as_a_cosine_to_zero():
    assert [schedule(step, 12, 3) for step in range(3)] == [0.25, 0.5, 0.75]
    assert schedule(3, 12, 3) == 1.0
    assert schedule(6, 12, 3) == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))
    assert schedule(12, 12, 3) == pytest.approx(0)
    assert [schedule(step, 4, 0) for step in range(4)] == pytest.approx([1, 0.8535534, 0.5, 0.1464466])


def test_a_linear_schedule_falls_by_the_same_amount_in_every_step():
    assert [schedule(step, 4, 0, "linear") for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert [schedule(step, 12, 3, "linear") for step in (0, 2, 3, 6, 12)] == pytest.approx([0.25, 0.75, 1, 2 / 3, 0])


def test_weights_batch_norms_and_biases_decay_alike(task):
    model = net()
    with torch.no_grad():
        model[1].bias.fill_(1.0)
    before = copy.deepcopy(dict(model.named_parameters()))
    still = replace(task, loss=lambda outputs, targets: outputs.sum() * 0)
    training = Training(lr=0.5, batch_size=40, momentum=0.0, weight_decay=0.25, warmup_epochs=0, schedule="linear")
    fit(model, still, training, seed=0, steps=2)
    # 1 - 0.5 0.25 in the first step, 1 - 0.25 0.25 in the second.
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, before[name] * 0.875 * 0.9375), name


def test_the_optimizer_gets_the_schedule_and_warm_up_is_at_most_a_fifth(task):
    rates: list[float] = []
    training = replace_training(QUICK, epochs=5, warmup_epochs=3)

    def record(epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    fit(net(), task, training, seed=0, on_epoch=record)
    # 20 steps, 4 an epoch; the warm-up is 4 steps, not 12.
    assert rates == pytest.approx([0.05 * schedule(step, 20, 4) for step in (3, 7, 11, 15, 19)])


def replace_training(training: Training, **changes: float) -> Training:
    return training.model_copy(update=changes)


def test_a_split_smaller_than_a_batch_is_one_step_an_epoch(task):
    assert task.train.steps(10) == 4
    assert task.train.steps(12) == 3
    assert task.train.steps(64) == 1
    calls: list[int] = []
    fit(net(), task, replace_training(QUICK, batch_size=64), seed=0, hook=calls.append)
    assert calls == [0, 1, 2, 3]


def test_training_learns(task):
    losses: list[float] = []
    training = replace_training(QUICK, epochs=40)
    fit(net(), task, training, seed=0, on_epoch=lambda epoch, loss, optimizer: losses.append(loss))
    assert losses[0] == pytest.approx(math.log(40), rel=0.1)
    assert losses[-1] < 0.5 * losses[0]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(task):
    first, again, other = net(), net(), net()
    fit(first, task, QUICK, seed=3)
    fit(again, task, QUICK, seed=3)
    fit(other, task, QUICK, seed=4)
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("stop", [1, 2])
def test_a_continued_training_ends_with_the_same_bits_as_one_that_ran_through(task, stop):
    noisy = replace(task, augment=lambda inputs, generator: inputs.roll(
        int(torch.randint(0, 8, (), generator=generator)), dims=3
    ))  # fmt: skip
    saved: dict[str, dict] = {}

    def keep(epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        if epoch == stop:
            saved["model"] = copy.deepcopy(whole.state_dict())
            saved["optimizer"] = copy.deepcopy(optimizer.state_dict())

    whole, continued, from_scratch = net(), net(1), net()
    fit(whole, noisy, QUICK, seed=0, on_epoch=keep)
    continued.load_state_dict(saved["model"])
    from_scratch.load_state_dict(saved["model"])
    calls: list[int] = []
    fit(continued, noisy, QUICK, seed=0, start_epoch=stop, optimizer_state=saved["optimizer"], hook=calls.append)
    assert calls == list(range(4 * stop, 13))
    assert equal(whole, continued)
    # Without the momentum it ends elsewhere, so the comparison above does say something.
    fit(from_scratch, noisy, QUICK, seed=0, start_epoch=stop)
    assert not equal(whole, from_scratch)


def test_a_training_on_a_stream_is_the_same_with_processes_that_read_ahead_and_when_it_is_continued(task):
    whole = streamed("train", Shifted(task), tuple, 0, default_collate)
    models, saved = {}, {}
    for loaders in (0, 2):
        seen: list[int] = []
        read = replace(task, train=replace(whole, loaders=loaders), loss=remembering(seen))
        models[loaders] = model = net()

        def keep(epoch: int, loss: float, optimizer: torch.optim.Optimizer, model=model, seen=seen) -> None:
            saved[epoch] = copy.deepcopy((model.state_dict(), optimizer.state_dict())), list(seen)

        fit(model, read, QUICK, seed=0, on_epoch=keep)
        assert len(seen) == 3 * 40
        assert sorted(seen[:40]) == list(range(40))
        continued, again = net(1), []
        (state, optimizer), before = saved[1]
        continued.load_state_dict(state)
        fit(continued, replace(read, loss=remembering(again)), QUICK, seed=0, start_epoch=1, optimizer_state=optimizer)
        assert before + again == seen
        assert equal(continued, model)
    assert equal(models[0], models[2])
    assert not multiprocessing.active_children()


def remembering(seen: list[int]):
    """The cross entropy, which keeps the targets: the numbers of their samples."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.extend(targets.tolist())
        return F.cross_entropy(outputs, targets)

    return loss


def test_the_processes_that_read_ahead_end_with_a_training_that_fails(task):
    read = replace(task, train=replace(streamed("train", Shifted(task), tuple, 0, default_collate), loaders=2))
    with pytest.raises(TrainingFailed):
        fit(net(), replace(read, loss=lambda outputs, targets: outputs.sum() * math.nan), QUICK, seed=0)
    assert not multiprocessing.active_children()


def test_the_pace_counts_the_images_of_an_epoch(task):
    seen = []
    pace = Pace()
    fit(net(), task, QUICK, seed=0, pace=pace, on_epoch=lambda *_: seen.append((pace.images, pace.epoch())))
    assert [images for images, _ in seen] == [40, 40, 40]
    assert all(found["images_per_second"] > 0 for _, found in seen)


def test_steps_end_a_training_early_and_are_the_length_of_its_schedule(task):
    calls: list[int] = []
    rates: list[float] = []
    epochs: list[int] = []

    def record(epoch: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        epochs.append(epoch)
        rates.append(optimizer.param_groups[0]["lr"])

    fit(net(), task, QUICK, seed=0, steps=6, hook=calls.append, on_epoch=record)
    assert calls == [0, 1, 2, 3, 4, 5, 6]
    assert epochs == [1, 2]
    assert rates == pytest.approx([0.05 * schedule(step, 6, 6 / 5) for step in (3, 5)])


def test_the_hook_hears_of_every_step_from_zero_to_the_last(task):
    calls: list[int] = []
    fit(net(), task, QUICK, seed=0, hook=calls.append)
    assert calls == list(range(13))
    calls.clear()
    fit(net(), task, replace_training(QUICK, epochs=0), seed=0, hook=calls.append)
    assert calls == [0]


def test_a_hook_is_called_after_the_optimizer_so_what_it_sets_stays(task):
    model = net()

    def keep_zero(step: int) -> None:
        model[4].weight.data[0] = 0.0

    fit(model, task, QUICK, seed=0, hook=keep_zero)
    assert torch.equal(model[4].weight[0], torch.zeros(36))


def test_a_loss_that_is_not_finite_fails_the_training_and_names_the_learning_rate(task):
    with pytest.raises(TrainingFailed, match=r"the loss became (nan|inf) in epoch \d. Remedy: an lr below 1e\+12"):
        fit(net(), task, replace_training(QUICK, lr=1e12), seed=0)


# Without batch norm a model's output on a batch is the same in training and in evaluation.
def plain(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40))


def test_a_student_equal_to_its_teacher_stays_when_only_the_teacher_is_followed(task):
    training = replace_training(QUICK, weight_decay=0.0)
    teacher, student = plain(), plain()
    fit(student, task, training, seed=0, teacher=teacher, distill=Distill(weight=1.0))
    assert torch.allclose(student[1].weight, teacher[1].weight, atol=1e-6)
    fit(student, task, training, seed=0, teacher=teacher, distill=Distill(weight=0.0))
    assert (student[1].weight - teacher[1].weight).abs().max() > 0.01


def test_the_loss_mixes_targets_and_teacher_by_the_weight(task):
    teacher, student = plain(1), plain(2)
    inputs = task.normalize(task.train.inputs)
    with torch.no_grad():
        hard = F.cross_entropy(student(inputs), task.train.targets)
        soft = soft_cross_entropy(student(inputs), teacher(inputs), 3.0)
    assert hard.item() != pytest.approx(soft.item(), rel=0.1)
    losses: list[float] = []
    fit(
        student, task, replace_training(QUICK, epochs=1, batch_size=40), seed=0, teacher=teacher,
        distill=Distill(weight=0.3, temperature=3.0), on_epoch=lambda epoch, loss, optimizer: losses.append(loss),
    )  # fmt: skip
    assert losses == pytest.approx([0.7 * hard.item() + 0.3 * soft.item()], rel=1e-5)


def test_the_teacher_is_asked_in_evaluation_mode_and_is_not_changed(task):
    teacher, student = net().train(), net(1)
    before = copy.deepcopy(teacher)
    fit(student, task, QUICK, seed=0, teacher=teacher, distill=Distill(weight=0.5))
    assert equal(teacher, before)
    assert all(p.grad is None for p in teacher.parameters())


class Watcher:
    """Stands for the augmentation: notes what it was given."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []
        self.noise: list[float] = []

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        self.batches.append(inputs.clone())
        self.noise.append(torch.rand((), generator=generator).item())
        return inputs


def watch(task: Task, **arguments: object) -> Watcher:
    watcher = Watcher()
    arguments = {"seed": 0, **arguments}
    fit(net(), replace(task, augment=watcher), QUICK, **arguments)  # type: ignore[arg-type]
    return watcher


def test_the_augmentation_sees_raw_inputs_and_a_generator_that_the_seed_decides(task):
    first, again, other = watch(task), watch(task), watch(task, seed=1)
    assert first.batches[0].dtype == torch.uint8
    assert first.noise == again.noise
    assert len(set(first.noise)) == 12
    assert not set(first.noise) & set(other.noise)
    assert all(torch.equal(a, b) for a, b in zip(first.batches, again.batches, strict=True))
    assert not torch.equal(first.batches[0], other.batches[0])


def test_every_epoch_sees_each_sample_once_in_an_order_of_its_own(task):
    batches = watch(task).batches
    assert [len(batch) for batch in batches] == [10] * 12
    epochs = [torch.cat(batches[start : start + 4]).flatten(1) for start in (0, 4, 8)]
    everything = {tuple(row) for row in task.train.inputs.flatten(1).tolist()}
    assert all({tuple(row) for row in epoch.tolist()} == everything for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_two_shards_share_each_batch_and_draw_different_noise(task, monkeypatch):
    monkeypatch.setattr(loop.torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    whole = watch(task)
    left, right = (watch(task, shard=Shard(rank, 2)) for rank in (0, 1))
    for batch, *parts in zip(whole.batches, left.batches, right.batches, strict=True):
        assert [len(part) for part in parts] == [5, 5]
        assert torch.equal(torch.stack(parts, 1).flatten(0, 1), batch)
    assert not set(left.noise) & set(right.noise)


def test_the_reported_loss_of_shards_is_the_mean_over_all_of_them(task, monkeypatch):
    # Stands for a second process whose loss sum is 12.
    monkeypatch.setattr(loop.torch.distributed, "all_reduce", lambda tensor: tensor.add_(12.0))
    toy = replace(task, loss=lambda outputs, targets: outputs.sum() * 0 + 1.0)
    losses: list[float] = []
    fit(net(), toy, QUICK, seed=0, shard=Shard(0, 2), on_epoch=lambda epoch, loss, optimizer: losses.append(loss))
    # 4 steps: (4 * 1 + 12) / 4 / 2 processes.
    assert losses == pytest.approx([2.0] * 3)


def test_an_explicit_wish_for_a_precision_wins():
    for model in (lenet(), mobilenet_v1(width=0.25)):
        for wish in ("bf16", "float32"):
            assert choose_precision(model, torch.device("cpu"), wish) == wish


def test_on_a_processor_depthwise_models_train_in_float32_and_dense_ones_in_bf16_where_it_is_fast(monkeypatch):
    cpu = torch.device("cpu")
    for has_bf16, dense in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(loop.torch.cpu, "_is_avx512_bf16_supported", lambda has_bf16=has_bf16: has_bf16)
        assert choose_precision(lenet(), cpu) == dense
        assert choose_precision(mobilenet_v1(width=0.25), cpu) == "float32"


def test_on_a_graphics_processor_its_bf16_decides(monkeypatch):
    for has_bf16, expected in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(loop.torch.cuda, "is_bf16_supported", lambda has_bf16=has_bf16: has_bf16)
        assert choose_precision(mobilenet_v1(width=0.25), torch.device("cuda")) == expected


def test_bf16_trains_and_keeps_the_weights_in_float32(task):
    exact, rough = net(), net()
    losses: list[float] = []
    fit(exact, task, QUICK, seed=0, on_epoch=lambda epoch, loss, optimizer: losses.append(loss))
    fit(rough, task, QUICK, seed=0, precision="bf16", on_epoch=lambda epoch, loss, optimizer: losses.append(loss))
    assert rough[0].weight.dtype == torch.float32
    assert not equal(exact, rough)
    assert losses[3:] == pytest.approx(losses[:3], rel=0.02)
