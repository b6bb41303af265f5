from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learners.weight_sparse import Settings, WeightSparse, gradual_sparsity, smallest_mask, zero_count
from pfray.data import digits
from pfray.errors import UnsupportedModel
from pfray.models.lenet import lenet
from pfray.models.mobilenet import mobilenet_v1
from pfray.nn.layers import weight_layers
from pfray.nn.modes import place
from pfray.task import Task
from pfray.training.loop import fit
from pfray.training.settings import Training


@pytest.fixture(scope="module")
def task() -> Task:
    return digits.build()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return place(lenet(in_channels=1), "cpu")


def compress(model: nn.Module, plan: dict, settings: Settings | None = None, steps: int = 0) -> tuple[nn.Module, Any]:
    """(the compressed copy, its hook)."""
    compressed = WeightSparse(model, None, settings).compress(plan, steps)  # type: ignore[arg-type]
    return compressed.model, compressed.hook


def sparsity(weight: Tensor) -> float:
    return (weight == 0).float().mean().item()


def negative_zeros(model: nn.Module) -> int:
    return sum(int(((p == 0) & p.signbit()).sum()) for p in model.parameters())


def test_the_sparsity_over_time_equals_values_worked_by_hand():
    cubic = partial(gradual_sparsity, 0.8, settings=Settings(begin=0.2, end=0.6, exponent=3))
    # Half way from 0.2 to 0.6: 0.8 (1 - 0.5^3) = 0.7. A quarter: 0.8 (1 - 0.75^3) = 0.4625.
    assert [cubic(t) for t in (0.0, 0.2, 0.3, 0.4, 0.6, 0.9, 1.0)] == pytest.approx(
        [0, 0, 0.4625, 0.7, 0.8, 0.8, 0.8]
    )
    linear = Settings(begin=0.0, end=1.0, exponent=1)
    assert [gradual_sparsity(0.6, t, linear) for t in (0.25, 0.5, 1.0)] == pytest.approx([0.15, 0.3, 0.6])
    # From 0.4: half way 0.4 + 0.4 (1 - 0.5^3) = 0.75.
    assert [cubic(t, initial=0.4) for t in (0.0, 0.4, 1.0)] == pytest.approx([0.4, 0.75, 0.8])


def test_zeros_of_a_model_that_is_sparse_already_stay_zero():
    # 4 zeros of 8, then 6: at no step do fewer stay, and those of the begin are never trained.
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0, 0, 0, 5, 6, 7, 8]]))
    begun, hook = compress(model, {"0": 0.75}, Settings(interval=1, end=1.0, exponent=1), steps=4)
    counts = []
    for step in range(5):
        hook(step)
        counts.append(begun[0].weight.eq(0).sum().item())
        assert begun[0].weight[0, :4].eq(0).all()
        with torch.no_grad():
            begun[0].weight += 9.0
    # 0.5, 0.5625, 0.625, 0.6875 and 0.75 of 8; 4.5 rounds to 4, 5.5 to 6.
    assert counts == [4, 4, 5, 6, 6]


def test_the_smallest_magnitudes_go_and_ties_go_by_position():
    weight = torch.tensor([[3.0, -1.0, 1.0], [-0.5, 1.0, 2.0]])
    assert smallest_mask(weight, 0.5).tolist() == [[False, True, True], [True, False, False]]
    assert not smallest_mask(weight, 0.0).any()
    assert smallest_mask(weight, 1.0).all()
    # 0.4 of 6 is 2.4, so 2; 0.42 of 6 is 2.52, so 3.
    assert (zero_count(0.4, 6), zero_count(0.42, 6)) == (2, 3)


def test_the_memory_format_does_not_change_what_is_pruned():
    generator = torch.Generator().manual_seed(0)
    # Few distinct values, so that there are ties.
    weight = torch.randint(-3, 4, (5, 4, 3, 3), generator=generator).float()
    last = weight.contiguous(memory_format=torch.channels_last)
    assert last.stride() != weight.stride()
    for share in (0.1, 0.33, 0.8):
        assert torch.equal(smallest_mask(last, share), smallest_mask(weight, share))
        models = []
        for format in (torch.contiguous_format, torch.channels_last):
            model = nn.Sequential(nn.Conv2d(4, 5, 3))
            model[0].weight = nn.Parameter(weight.contiguous(memory_format=format))
            models.append(compress(model, {"0": share})[0])
        assert torch.equal(models[0][0].weight, models[1][0].weight)
        assert torch.equal(models[0][0].weight, weight.masked_fill(smallest_mask(weight, share), 0.0))


def test_compressing_at_once_leaves_what_is_kept_untouched(model):
    plan = {"conv2": 0.6, "fc1": 0.95}
    small, _ = compress(model, plan)
    for name, share in plan.items():
        old, new = model.get_submodule(name).weight, small.get_submodule(name).weight
        kept = new != 0
        assert int((~kept).sum()) == zero_count(share, new.numel())
        assert torch.equal(new[kept], old[kept])
        assert old[~kept].abs().max() <= old[kept].abs().min()
    assert torch.equal(small.fc2.weight, model.fc2.weight)
    assert negative_zeros(small) == 0


@pytest.mark.parametrize("behind", [nn.BatchNorm2d(6), nn.Identity()])
def test_what_is_left_of_a_layer_is_fitted_to_what_it_gave_before(task, behind):
    torch.manual_seed(0)
    bias = isinstance(behind, nn.Identity)
    whole = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=bias), copy.deepcopy(behind), nn.ReLU(), nn.Conv2d(6, 6, 3, bias=bias),
        copy.deepcopy(behind), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10),
    )  # fmt: skip
    inputs = task.normalize(task.train.inputs[:200])
    with torch.no_grad():
        whole.train()(inputs)
    whole.eval()
    plan = {"0": 0.5, "3": 0.8, "7": 0.8}

    def lost(steps: int) -> list[float]:
        model = WeightSparse(whole, task, Settings(regression_steps=steps, images=200)).compress(plan).model
        assert [round(sparsity(model[int(name)].weight), 1) for name in plan] == [0.5, 0.8, 0.8]
        found = []
        with torch.no_grad():
            for index in (0, 3, 7):  # each with the inputs that it has in the uncompressed model
                read = whole[:index](inputs)
                end = index + 2 if index < 7 else 8
                expected = whole[index:end](read)
                found.append(((model[index:end](read) - expected).square().mean() / expected.var()).item())
        return found

    none, few, many = lost(0), lost(3), lost(30)
    assert all(b < 0.7 * a for a, b in zip(none, few, strict=True))
    assert all(b <= a + 1e-6 for a, b in zip(few, many, strict=True))


def test_masks_follow_begin_interval_and_end(model):
    settings = Settings(begin=0.25, end=0.75, interval=4, exponent=3)
    model, hook = compress(model, {"fc1": 0.8}, settings, steps=40)
    seen = []
    generator = torch.Generator().manual_seed(0)
    for step in range(41):
        hook(step)
        seen.append(sparsity(model.fc1.weight))
        # Stands for an optimizer step, which moves every weight.
        with torch.no_grad():
            model.fc1.weight += 1e-3 * torch.randn(model.fc1.weight.shape, generator=generator)
    expected = [gradual_sparsity(0.8, step / 40, settings) for step in range(41)]
    assert seen[:11] == [0.0] * 11
    for step in range(41):
        update = 30 if step >= 30 else step // 4 * 4
        assert seen[step] == pytest.approx(expected[update], abs=1 / 48_000)
    assert seen[28] < seen[30] == pytest.approx(0.8, abs=1 / 48_000)
    assert seen == sorted(seen)


def test_the_plan_is_reached_whatever_the_number_of_steps_and_the_interval(model):
    for steps in (1, 2, 7, 10):
        for interval in (1, 3, 100):
            for end in (0.05, 0.6, 1.0):
                small, hook = compress(model, {"fc2": 0.7}, Settings(end=end, interval=interval), steps)
                for step in range(steps + 1):
                    hook(step)
                assert int((small.fc2.weight == 0).sum()) == zero_count(0.7, 120 * 84)


def test_pruned_weights_never_come_back_in_a_training_and_end_as_positive_zeros(model, task):
    plan = WeightSparse(model, task).space().uniform({"sparsity": 0.8})
    model, hook = compress(model, plan, Settings(interval=4), steps=36)
    gone: dict[str, Tensor] = {name: torch.zeros_like(model.get_submodule(name).weight) > 0 for name in plan}

    def watch(step: int) -> None:
        hook(step)
        for name, pruned in gone.items():
            now = model.get_submodule(name).weight == 0
            assert (now | ~pruned).all(), f"{name} at step {step}"
            gone[name] = now.clone()

    fit(model, task, Training(epochs=3, lr=0.05, batch_size=96), seed=0, hook=watch, steps=36)
    assert {name: int(pruned.sum()) for name, pruned in gone.items()} == {
        name: zero_count(plan[name], pruned.numel()) for name, pruned in gone.items()
    }
    assert negative_zeros(model) == 0


def test_which_weights_go_is_decided_by_the_training_not_by_the_start(model, task):
    before = smallest_mask(model.fc1.weight, 0.5)
    model, hook = compress(model, {"fc1": 0.5}, Settings(begin=0.4, end=0.8), steps=30)
    fit(model, task, Training(lr=0.1, batch_size=64), seed=0, hook=hook, steps=30)
    assert not torch.equal(model.fc1.weight == 0, before)


def test_a_continued_training_keeps_the_zeros_it_starts_with(model, task):
    model, _ = compress(model, {"fc1": 0.6})
    pruned = model.fc1.weight == 0
    model, hook = compress(model, {"fc1": 0.6}, Settings(end=0.5), steps=20)
    # As after a stop at step 16, past the end of the ramp: no update is due any more.
    calls = []

    def late(step: int) -> None:
        calls.append(step + 16)
        hook(step + 16)

    fit(model, task, Training(lr=0.05, batch_size=64), seed=0, hook=late, steps=4)
    assert calls == [16, 17, 18, 19, 20]
    assert torch.equal(model.fc1.weight == 0, pruned)
    assert negative_zeros(model) == 0


def test_depthwise_convolutions_are_left_alone_but_counted(task):
    model = mobilenet_v1(in_channels=1, width=0.25)
    layers = weight_layers(model)
    depthwise = {n for n, m in layers.items() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert len(depthwise) == 13
    space = WeightSparse(model, task).space()
    assert set(space.names) == set(layers) - depthwise
    weights = {n: m.weight.numel() for n, m in layers.items()}
    prunable = sum(size for n, size in weights.items() if n not in depthwise)
    all_half = dict.fromkeys(space.names, 0.5)
    assert space.costs(all_half)["sparsity"] == pytest.approx(0.5 * prunable / sum(weights.values()), abs=1e-4)
    assert set(WeightSparse(model, task, Settings(depthwise=True)).space().names) == set(layers)


def test_three_quarters_of_a_mobilenets_weights_are_removed_to_one_weight_per_layer(task):
    torch.manual_seed(0)
    model = mobilenet_v1(in_channels=1, width=0.25)
    space = WeightSparse(model, task).space()
    plan = space.uniform({"sparsity": 0.75})
    model, _ = compress(model, plan)
    weights = [m.weight for m in weight_layers(model).values()]
    pruned, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert 0.75 * total <= pruned <= 0.75 * total + len(plan)
    assert space.costs(plan)["sparsity"] == pytest.approx(pruned / total, abs=1e-12)


def test_knobs_know_their_layers_params_and_macs(model, task):
    facts = {knob.name: knob.facts for knob in WeightSparse(model, task).space().knobs}
    assert facts == {
        "conv1": {"params": 6 * 25, "macs": 28 * 28 * 6 * 25},
        "conv2": {"params": 16 * 6 * 25, "macs": 10 * 10 * 16 * 6 * 25},
        "fc1": {"params": 400 * 120, "macs": 400 * 120},
        "fc2": {"params": 120 * 84, "macs": 120 * 84},
        "fc3": {"params": 84 * 10, "macs": 84 * 10},
    }


def test_a_skipped_layer_has_no_knob_and_an_unknown_one_is_refused(model, task):
    space = WeightSparse(model, task, Settings(skip=("conv1", "fc3"))).space()
    assert space.names == ["conv2", "fc1", "fc2"]
    # 2,400 + 48,000 + 10,080 of all 61,470 weights.
    assert space.costs(dict.fromkeys(space.names, 0.5))["sparsity"] == pytest.approx(30_240 / 61_470)
    with pytest.raises(UnsupportedModel, match=r"no layer 'conv9'. Allowed: conv1, conv2, fc1, fc2, fc3"):
        WeightSparse(model, task, Settings(skip=("conv1", "conv9"))).space()


@pytest.mark.parametrize(("make", "settings"), [
    (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1024)), Settings()),
    (lambda: nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)), Settings()),
    (lambda: nn.Sequential(nn.Linear(4, 4)), Settings(skip=("0",))),
])  # fmt: skip
def test_a_model_with_nothing_to_sparsify_is_refused(task, make, settings):
    with pytest.raises(UnsupportedModel, match="Sequential has no convolution or linear layer to sparsify"):
        WeightSparse(make(), task, settings).space()


def test_settings_whose_ramp_has_no_length_are_refused():
    with pytest.raises(ValueError, match=r"begin is 0.6 and end is 0.6; begin must be below end"):
        Settings(begin=0.6)


def test_the_error_of_a_sparsity_is_the_share_of_the_squared_magnitude_that_it_removes():
    task = digits.build()
    model = nn.Sequential(nn.Flatten(), nn.Linear(task.train.inputs[0].numel(), 4), nn.Linear(4, 10))
    with torch.no_grad():
        model[2].weight.copy_(torch.arange(1.0, 41.0).reshape(10, 4))
    curve = WeightSparse(model, task, Settings(max_sparsity=0.75)).error_curves()["2"]
    # At 0.75 the 30 smallest of 1, 2 .. 40 are gone; half way in the logarithm of the density, at 0.5, the 20 smallest.
    def squares(n: int) -> float:
        return n * (n + 1) * (2 * n + 1) / 6

    assert curve[0] == pytest.approx(squares(30) / squares(40))
    assert curve[len(curve) // 2] == pytest.approx(squares(20) / squares(40))
    assert curve[-1] == 0.0
