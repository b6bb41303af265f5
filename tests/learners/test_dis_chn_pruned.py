from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from learners.dis_chn_pruned import (
    Columns,
    Criterion,
    DisChnPruned,
    Settings,
    cached_scores,
    calibration,
    choose,
    columns_of,
    empty_scores,
    gradient_norms,
    only_trained,
)
from pfray.channels import graph_of, kept_counts, left
from pfray.config import Training
from pfray.coupling import Cut
from pfray.errors import TrainingFailed, UnsupportedModel
from pfray.extra_losses import Head, Stage, divide, make_heads, observe, tune
from pfray.measure import count_params, evaluate, example_input, place, total_macs
from pfray.models.resnet import resnet20
from pfray.task import Split, Task
from tests.zoo import Residual, conv, head, randomize

CPU = torch.device("cpu")
QUICK = {"round_to": 1, "steps": 2, "batch_size": 16, "images": 40}


def make_task(shape: tuple[int, ...] = (2, 8, 8), classes: int = 3, samples: int = 60) -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, *shape, generator=generator)
    split = Split(inputs, torch.randint(classes, (samples,), generator=generator))
    return Task("random", split, split.head(20), split.head(20), classes)


def informative(samples: int = 240) -> Task:
    """Four classes; the class is the sign of two of eight inputs' means, the other six inputs are noise as large."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(samples) % 4
    inputs = torch.randn(samples, 8, 4, 4, generator=generator)
    signs = torch.stack([targets % 2 * 2.0 - 1, targets // 2 * 2.0 - 1], 1)
    inputs[:, [2, 5]] = signs[:, :, None, None] + 0.3 * inputs[:, [2, 5]]
    split = Split(inputs, targets)
    return Task("informative", split, split.head(40), split.head(40), 4)


def passing_on() -> nn.Module:
    """Layer 0 gives each of the eight inputs as a channel of its own, layer 2 mixes them all alike."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), head(8, 4)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(8)[:, :, None, None])
        model[0].bias.fill_(1.0)
        # Orthogonal columns of length 1: what is read of each channel adds the same to the output.
        model[2].weight.copy_(torch.linalg.qr(torch.randn(8, 8)).Q[:, :, None, None])
    return model


def chain(widths: tuple[int, ...] = (4, 5, 6, 7)) -> nn.Module:
    torch.manual_seed(0)
    layers = [conv(*pair) for pair in zip((2, *widths), widths, strict=False)]
    return randomize(nn.Sequential(*layers, head(widths[-1], 3))).eval()


def criterion_of(model: nn.Module, task: Task, name: str, layer: str | None, weight: float = 1.0) -> Criterion:
    group = next(group for group in graph_of(model, task).groups if group.name == name)
    own_head = make_heads(model, [Stage((group,), layer)], {}, task).get(layer)
    return Criterion(copy.deepcopy(model), copy.deepcopy(model), task, group, {}, layer, own_head, weight)


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_head_is_batch_norm_relu_mean_and_a_linear_layer():
    own = Head(torch.tensor([1.0, 1.0, 0.0]), 2).eval()
    own.norm.running_mean = torch.tensor([1.0, 0.0, 0.0])
    own.norm.running_var = torch.tensor([4.0, 1.0, 1.0]) - own.norm.eps
    with torch.no_grad():
        own.theta.copy_(torch.tensor([[1.0, 0.0, 9.0], [2.0, 3.0, 9.0]]))
        own.bias.copy_(torch.tensor([0.0, 10.0]))
    maps = torch.tensor([[[5.0, -9.0], [2.0, 4.0], [7.0, 7.0]]])
    # (5 - 1) / 2 = 2 and below 0: mean 1. 2 and 4: mean 3. The third channel is removed and not seen.
    assert own(maps)[0].tolist() == pytest.approx([1.0, 2 + 9 + 10], rel=1e-5)


def test_a_new_head_tells_the_classes_from_features_that_do():
    task, model = informative(), passing_on()
    groups = graph_of(model, task).groups
    made = make_heads(model, [Stage(groups, "2")], {}, task)["2"]
    outputs, targets = [], []
    for inputs, own in calibration(task, 240, CPU):
        maps = model[2](model[:2](inputs)).flatten(2)
        outputs.append(made(maps))
        targets.append(own)
    assert (torch.cat(outputs).argmax(1) == torch.cat(targets)).float().mean() > 0.9
    assert not made.training
    assert make_heads(model, [Stage(groups, None)], {}, task) == {}
    # Removed outputs are not seen.
    seen = make_heads(model, [Stage(groups, "2")], {("2", "out"): np.array([1, 6])}, task)["2"].alive
    assert seen.tolist() == [0, 1, 0, 0, 0, 0, 1, 0]


def test_stages_divide_the_groups_evenly_and_look_at_what_the_last_group_is_read_by():
    task, model = make_task(), chain()
    groups = graph_of(model, task).groups
    assert [group.name for group in groups] == ["0.0", "1.0", "2.0", "3.0"]
    # The last layer is the one that makes the outputs: its loss is the task's.
    assert [([g.name for g in s.groups], s.layer) for s in divide(model, groups, 3, task)] == [
        (["0.0"], "1.0"), (["1.0"], "2.0"), (["2.0"], "3.0"), (["3.0"], None)]  # fmt: skip
    assert [([g.name for g in s.groups], s.layer) for s in divide(model, groups, 1, task)] == [
        (["0.0", "1.0"], "2.0"), (["2.0", "3.0"], None)]  # fmt: skip
    assert [([g.name for g in s.groups], s.layer) for s in divide(model, groups[:2], 9, task)] == [
        (["0.0"], "1.0"), (["1.0"], None)]  # fmt: skip
    assert [s.layer for s in divide(model, groups, 0, task)] == [None]
    assert [s.layer for s in divide(model, [groups[3], groups[0]], 1, task)] == [None, None]
    assert divide(model, [], 3, task) == []


def test_a_stage_of_parallel_branches_looks_where_they_have_met():
    task = make_task()
    torch.manual_seed(0)
    branches = Residual(nn.Sequential(conv(4, 6), conv(6, 4)), nn.Sequential(conv(4, 5), conv(5, 4)))
    model = nn.Sequential(conv(2, 4), branches, conv(4, 7), head(7, 3)).eval()
    groups = graph_of(model, task).groups
    both = [group for group in groups if group.name in ("1.body.0.0", "1.shortcut.0.0")]
    assert len(both) == 2
    rest = [group for group in groups if group.name == "2.0"]
    # Neither branch's last layer depends on the other branch; the next convolution does on both.
    stages = divide(model, [*both, *rest, *rest], 1, task)
    assert stages[0].layer == "2.0"


def test_the_gradient_of_the_criterion_equals_one_written_out_for_a_single_reader():
    task, model = informative(), passing_on()
    found = criterion_of(model, task, "0", None, weight=0.0)
    columns = columns_of(found.student, found.group)
    batches = calibration(task, 200, CPU)
    with only_trained(found, columns):
        columns[0].clear(np.arange(8))
        norms = gradient_norms(found, columns, batches)
    # L_M = 1/2 mean (O - b)^2 with all weights 0, so dL/dW_ok = -mean over all entries of (O_o - b_o) X_k.
    inputs = model[:2](task.train.inputs[:200]).transpose(0, 1).flatten(1)
    target = (model[2].weight[:, :, 0, 0] @ inputs).detach()
    expected = (target @ inputs.T / target.numel()).square().sum(0).sqrt()
    assert norms == pytest.approx(expected.detach().numpy(), rel=1e-4)


def test_the_discrimination_loss_is_added_with_its_weight():
    task, model = informative(), passing_on()
    (batch,) = calibration(task, 64, CPU)
    plain = criterion_of(model, task, "0", None, weight=0.0)
    with torch.no_grad():
        assert plain(*batch).item() == 0.0
        final = criterion_of(model, task, "0", None, weight=0.5)
        assert final(*batch).item() == pytest.approx(0.5 * F.cross_entropy(model(batch[0]), batch[1]).item())
        extra = criterion_of(model, task, "0", "2", weight=2.0)
        judged = extra.head(model[2](model[:2](batch[0])).flatten(2))
        assert extra(*batch).item() == pytest.approx(2.0 * F.cross_entropy(judged, batch[1]).item())
        # Outputs that are removed already do not count in L_M.
        plain.student[2].bias[3] += 1.0
        assert plain(*batch).item() == pytest.approx(0.5 / 8)
        stays = np.array([0, 1, 2, 4, 5, 6, 7])
        assert replace(plain, alive={("2", "out"): stays})(*batch).item() == 0.0


@pytest.mark.parametrize(("layer", "per_step"), [("2", 1), ("2", 2), (None, 1)])
def test_the_channels_that_tell_the_classes_are_the_first_to_be_chosen(layer, per_step):
    task, model = informative(), passing_on()
    if layer is None:  # the outputs' own loss: the last layer has to know the classes
        own = make_heads(model, [Stage((), "2")], {}, task)["2"]
        with torch.no_grad():
            scale = (own.norm.running_var + own.norm.eps).rsqrt()
            model[2].weight *= scale[:, None, None, None]
            model[2].bias.copy_((model[2].bias - own.norm.running_mean) * scale)
            model[4][2].weight.copy_(own.theta)
            model[4][2].bias.copy_(own.bias)
    settings = Settings(images=240, per_step=per_step)
    batches = calibration(task, 240, CPU)
    found = criterion_of(model, task, "0", layer, weight=20.0)
    assert choose(found, 2, batches, settings).tolist() == [2, 5]
    # Without the extra loss the noise is as good: every channel adds the same to the next layer.
    spread = empty_scores(model, [found.group], task, Settings(losses=0, weight=0.0, images=240))["0"]
    assert spread[[0, 1, 3, 4, 6, 7]].max() > 0.8 * spread[[2, 5]].min()


def test_what_is_not_chosen_is_zero_and_the_rest_is_moved_from_where_it_was():
    task, model = informative(), passing_on()
    batches = calibration(task, 240, CPU)
    still = criterion_of(model, task, "0", "2")
    chosen = choose(still, 5, batches, Settings(inner_steps=0))
    gone = np.setdiff1d(np.arange(8), chosen)
    assert len(chosen) == 5
    assert torch.equal(still.student[2].weight[:, chosen], model[2].weight[:, chosen])
    assert not still.student[2].weight[:, gone].any()
    # None is chosen twice, even where the others have nothing to offer any more.
    everything = criterion_of(model, task, "0", "2")
    nn.init.zeros_(everything.student[0].weight[4:])
    nn.init.constant_(everything.student[0].bias[4:], -1.0)
    assert choose(everything, 8, batches, Settings(per_step=3)).tolist() == list(range(8))
    moved = criterion_of(model, task, "0", "2")
    chosen = choose(moved, 5, batches, Settings(inner_steps=3))
    gone = np.setdiff1d(np.arange(8), chosen)
    assert not torch.equal(moved.student[2].weight[:, chosen], model[2].weight[:, chosen])
    assert not moved.student[2].weight[:, gone].any()
    assert moved.student[2].bias.ne(model[2].bias).any()
    # Nothing else moves, and what is trained is as it was.
    others = {name: own for name, own in state(moved.student).items() if not name.startswith("2.")}
    assert equal(others, {name: own for name, own in state(model).items() if not name.startswith("2.")})
    assert all(p.requires_grad and p.grad is None for p in moved.student.parameters())


def test_the_steps_in_between_lower_the_loss():
    task, model = informative(), passing_on()
    batches = calibration(task, 240, CPU)
    losses = []
    for steps in (0, 20):
        found = criterion_of(model, task, "0", "2")
        choose(found, 3, batches, Settings(inner_steps=steps, inner_lr=0.05))
        with torch.no_grad():
            losses.append(sum(found(*batch).item() for batch in batches))
    assert losses[1] < 0.9 * losses[0]


def test_columns_of_grouped_and_transposed_layers_are_those_that_read_the_unit():
    grouped = nn.Conv2d(4, 2, 1, groups=2)
    # Unit 0 is the first channel of each of two groups.
    columns = Columns(grouped, Cut("x", "in", np.array([[0, 2], [1, 3]]), 4, "CONV"))
    gradient = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:, :, None, None]
    assert columns.squares(gradient).tolist() == [1 + 9, 4 + 16]
    columns.clear(np.array([1]))
    assert grouped.weight[:, 1].tolist() == [[[0.0]], [[0.0]]]
    assert torch.equal(grouped.weight[:, 0], columns.before[:, 0])
    columns.bring_back(np.array([1]))
    assert torch.equal(grouped.weight, columns.before)
    transposed = nn.ConvTranspose2d(3, 2, 1)
    columns = Columns(transposed, Cut("x", "in", np.array([[0], [1], [2]]), 3, "CONV"))
    gradient = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])[:, :, None, None]
    assert columns.squares(gradient).tolist() == [5, 25, 61]
    assert columns.mask(np.array([1])).flatten().tolist() == [0, 1, 0]


def test_tuning_trains_model_and_head_on_both_losses_and_leaves_no_hook():
    task, model = informative(), passing_on()
    groups = graph_of(model, task).groups
    stage = Stage(groups, "2")
    own = make_heads(model, [stage], {}, task)["2"]
    before = copy.deepcopy(own.state_dict())
    held: list[int] = []
    nn.init.zeros_(model[4][2].weight)  # the model's own loss then has no gradient before the head
    nn.init.zeros_(model[4][2].bias)
    frozen = model[4][2].requires_grad_(False)
    start = state(model)
    tune(model, stage, own, task, Training(lr=0.05, batch_size=40, weight_decay=0), 4, 0, held.append)
    assert held == [0, 1, 2, 3, 4]
    assert not torch.equal(model[0].weight, start["0.weight"])  # by the extra loss alone
    assert torch.equal(frozen.weight, start["4.2.weight"])
    assert not torch.equal(own.theta, before["theta"])
    assert not model.training
    assert not model[2]._forward_hooks
    assert all(p.grad is None for p in [*model.parameters(), *own.parameters()])


@pytest.mark.parametrize("losses", [0, 1, 3])
def test_finish_meets_the_plan_to_the_channel_and_the_teacher_stays_as_it_is(losses):
    task, model = make_task(), place(chain(), "cpu")
    before = state(model)
    settings = Settings(**QUICK, losses=losses)
    space = DisChnPruned.space(model, task, settings)
    plan = {"0.0": 0.5, "1.0": 1.0, "2.0": 1 / 6, "3.0": 3 / 7}
    small = DisChnPruned.finish(model, model, plan, task, settings)
    assert [small[i][0].out_channels for i in range(4)] == [2, 5, 1, 3]
    costs = {"macs": total_macs(small, example_input(task)), "params": count_params(small)[0]}
    assert costs == space.costs(plan)
    shell = copy.deepcopy(model)
    DisChnPruned.restructure(shell, plan, task, settings)
    shell.load_state_dict(small.state_dict())
    assert equal(state(model), before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    again = DisChnPruned.finish(model, model, plan, task, settings)
    assert equal(state(again), state(small))
    # A later stage starts from what the earlier one left, down to one channel.
    later = DisChnPruned.finish(small, model, {**plan, "3.0": 1 / 7}, task, settings)
    assert [later[i][0].out_channels for i in range(4)] == [2, 5, 1, 1]


def test_removed_channels_stay_removed_while_later_stages_are_tuned():
    task, model = make_task(), chain()
    seen = []
    settings = Settings(**{**QUICK, "steps": 3}, losses=3)
    from learners import dis_chn_pruned

    def spy(student: nn.Module, *args: object) -> None:
        tune(student, *args)  # type: ignore[arg-type]
        seen.append(int((student[1][0].weight.abs().sum((0, 2, 3)) == 0).sum()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dis_chn_pruned, "tune", spy)
        DisChnPruned.finish(model, model, {"0.0": 0.25, "1.0": 0.6, "2.0": 0.5, "3.0": 1.0}, task, settings)
    assert seen == [0, 3, 3, 3]


def test_a_search_prunes_to_the_units_of_the_largest_gradients_without_a_training():
    task, model = informative(), passing_on()
    settings = Settings(round_to=1, losses=1, weight=20.0, images=240)
    cache = DisChnPruned.prepare(model, task, settings)
    assert set(np.argsort(-cache.scores["0"])[:2]) == {2, 5}
    small = copy.deepcopy(model)
    DisChnPruned.compress(small, {"0": 0.25, "2": 1.0}, settings, cache, 0)
    assert torch.equal(small[0].weight, model[0].weight[[2, 5]])
    assert torch.equal(small[2].weight, model[2].weight[:, [2, 5]])
    # The second time it is read from the cache folder.
    again = cached_scores(model, cache.graph, task, settings)
    assert all(np.array_equal(again[name], cache.scores[name]) for name in again)
    curve = DisChnPruned.error_curves(model, task, settings)["0"]
    falling = np.sort(cache.scores["0"])[::-1]
    assert curve[0] == pytest.approx(1 - falling[0] / falling.sum())
    assert curve[-1] == 0.0


def test_a_regression_is_pruned_with_its_own_loss():
    task = informative()
    targets = torch.nn.functional.one_hot(task.train.targets, 4).float()
    split = Split(task.train.inputs, targets)
    task = replace(task, train=split, validation=split.head(40), test=split.head(40), loss=F.mse_loss,
                   score=lambda outputs, targets: -(outputs - targets).square().mean(1))  # fmt: skip
    model = passing_on()
    small = DisChnPruned.finish(model, model, {"0": 0.25, "2": 0.5}, task, Settings(**QUICK, losses=1, weight=20.0))
    assert (small[0].out_channels, small[2].out_channels) == (2, 4)
    scores = DisChnPruned.prepare(model, task, Settings(losses=1, weight=50.0)).scores["0"]
    assert set(np.argsort(-scores)[:2]) == {2, 5}


def test_a_model_that_no_head_can_stand_in_for_is_refused():
    task = make_task()
    model = nn.Sequential(conv(2, 8), nn.Conv2d(8, 3, 1))
    with pytest.raises(UnsupportedModel, match=r"need a model that gives \(N, K\), and this one gives \(1, 3, 8, 8\)"):
        DisChnPruned.space(model, task, Settings())
    assert DisChnPruned.space(model, task, Settings(losses=0)).names == ["0.0"]


def test_what_is_not_finite_is_refused():
    task, model = make_task(), chain()
    graph_of(model, task)
    model[3][0].weight.data[0] = torch.nan
    with pytest.raises(UnsupportedModel, match=r"layer 3.0 gives values that are not finite. Remedy: check"):
        DisChnPruned.prepare(model, task, Settings())
    with pytest.raises(TrainingFailed, match=r"channel group 0.0: the gradient is not finite. Remedy: a lower"):
        DisChnPruned.prepare(model, task, Settings(losses=0))
    with pytest.raises(TrainingFailed, match="the loss became nan"):
        DisChnPruned.finish(model, model, {"0.0": 0.5}, task, Settings(**QUICK))
    check = TypeAdapter(Settings).validate_python
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        check({"losses": -1})
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        check({"batch_size": 1})


def test_the_residual_channels_of_a_resnet_are_pruned_in_all_blocks():
    task = make_task((3, 16, 16), 10, 32)
    torch.manual_seed(0)
    model = place(randomize(resnet20()).eval(), "cpu")
    graph = graph_of(model, task)
    stages = divide(model, graph.groups, 3, task)
    assert [stage.layer for stage in stages] == ["layer1.1.conv2", "layer2.1.conv2", "layer3.0.conv2", None]
    plan = {group.name: 0.5 for group in graph.groups}
    settings = Settings(**{**QUICK, "steps": 1, "images": 16}, per_step=32, inner_steps=1)
    small = DisChnPruned.finish(model, model, plan, task, settings)
    assert small.conv1.out_channels == kept_counts(graph, plan)["conv1"] == 8
    assert evaluate(small, task, task.validation).loss > 0


def test_observing_stops_early_and_gives_what_the_layers_gave():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1), nn.Identity())
    ran = []
    model[3].register_forward_hook(lambda *_: ran.append(1))
    inputs = torch.randn(2, 2, 4, 4)
    seen, outputs = observe(model, ["2", "0"], inputs)
    assert list(seen) == ["0", "2"]
    assert outputs is None
    assert not ran
    assert torch.equal(seen["0"], model[0](inputs))  # before the ReLU that works in place
    seen, outputs = observe(model, ["0"], inputs, to_the_end=True)
    assert torch.equal(outputs, model(inputs))
    assert not model[0]._forward_hooks
    assert left(graph_of(chain(), make_task()), {}) == {}
