from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learners.channel_pruned import ChannelPruned, Settings, reconstructed
from pfray.data import digits
from pfray.errors import InfeasibleTarget, UnsupportedModel
from pfray.learner.context import Context
from pfray.measure import calibration
from pfray.measure.cost import total_macs
from pfray.measure.evaluation import answers_of, evaluate
from pfray.models.mobilenet import mobilenet_v1
from pfray.nn.modes import place
from pfray.pruning.channels.keep_ratios import allowed_counts, graph_of, kept_counts
from pfray.pruning.channels.prune import prune
from pfray.pruning.reconstruction import covariance, lasso
from pfray.pruning.reconstruction.sequential import reconstruct_in_order
from pfray.search.allocate import allocate_plan
from pfray.space import Plan
from pfray.task import Split, Task, example_input
from pfray.training.loop import fit
from pfray.training.settings import Training
from tests.small import channel_costs

SETTINGS = Settings(images=500, positions=20, round_to=2)
CURVES: dict[int, dict[str, np.ndarray]] = {}


@pytest.fixture(scope="module")
def task() -> Task:
    return digits.build()


@pytest.fixture(scope="module")
def trained(context: Context) -> nn.Module:
    """A LeNet that knows the digits."""
    return place(copy.deepcopy(context.teacher), "cpu").eval()


@pytest.fixture(scope="module")
def mobile(task: Task) -> nn.Module:
    torch.manual_seed(0)
    model = place(mobilenet_v1(in_channels=1, width=0.25), "cpu")
    fit(model, task, Training(epochs=5, lr=0.05, batch_size=64), seed=0)
    return model.eval()


@pytest.fixture(params=["trained", "mobile"])
def teacher(request: pytest.FixtureRequest) -> nn.Module:
    return request.getfixturevalue(request.param)


def curves_of(model: nn.Module, task: Task) -> dict[str, np.ndarray]:
    """Error curves of a fixture's model, computed once."""
    if id(model) not in CURVES:
        CURVES[id(model)] = ChannelPruned(model, task, SETTINGS).error_curves()
    return CURVES[id(model)]


def plan_at(model: nn.Module, task: Task, share: float) -> Plan:
    """The plan of allocate for a share of the multiply-adds."""
    space = ChannelPruned(model, task, SETTINGS).space()
    return allocate_plan(space, curves_of(model, task), {"macs": share * total_macs(model, example_input(task))})


def compressed(model: nn.Module, plan: Plan, task: Task, settings: Settings = SETTINGS) -> nn.Module:
    return ChannelPruned(model, task, settings).compress(plan).model


def plainly_removed(model: nn.Module, plan: Plan, task: Task) -> nn.Module:
    """The channels of ``compress``, nothing else."""
    calibration, pruned = ChannelPruned(model, task, SETTINGS).calibration, copy.deepcopy(model)
    counts = kept_counts(calibration.graph, plan)
    prune(pruned, calibration.graph, {group: calibration.kept[group][count] for group, count in counts.items()})
    return pruned


def distance(model: nn.Module, teacher: nn.Module, task: Task) -> float:
    """The squared error of the outputs on images that did not calibrate, as a share of their variance."""
    answers = [answers_of(net, task, task.validation) for net in (model, teacher)]
    own, other = (torch.cat([batch.outputs for batch in batches]) for batches in answers)
    return ((own - other).square().sum() / (other - other.mean(0)).square().sum()).item()


def outputs_at(model: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    seen = []
    # Copied, since what follows works in place.
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, outputs: seen.append(outputs.clone()))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    return seen[0]


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_pruned_model_costs_exactly_what_the_space_predicted(teacher, task, share):
    space, plan = ChannelPruned(teacher, task, SETTINGS).space(), plan_at(teacher, task, share)
    model = compressed(teacher, plan, task)
    assert space.costs(plan) == channel_costs(model, example_input(task))
    assert space.costs(plan)["macs"] <= share * total_macs(teacher, example_input(task))


# A LeNet has more channels than the digits need.
SHARES = {"trained": 0.15, "mobile": 0.5}


@pytest.mark.parametrize("name", SHARES)
def test_reconstruction_keeps_most_of_what_removal_alone_loses_and_in_order_even_more(name, task, request):
    teacher = request.getfixturevalue(name)
    plan, before = plan_at(teacher, task, SHARES[name]), copy.deepcopy(teacher.state_dict())
    plain, at_once = plainly_removed(teacher, plan, task), compressed(teacher, plan, task)
    algorithm = ChannelPruned(teacher, task, SETTINGS)
    finished = algorithm.finish(plan)
    in_order = finished.model
    assert shapes(plain) == shapes(at_once) == shapes(in_order)
    assert distance(at_once, teacher, task) < 0.5 * distance(plain, teacher, task)
    assert distance(in_order, teacher, task) < 0.8 * distance(at_once, teacher, task)
    accuracies = [evaluate(model, task, task.validation).accuracy for model in (teacher, in_order, plain)]
    assert accuracies[0] > 0.75
    assert accuracies[1] > accuracies[0] - 0.05
    assert accuracies[2] < accuracies[0] - 0.1
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    # The structure can be made again without the data, and the weights be put into it.
    restored = algorithm.rebuild(finished.structure)
    restored.load_state_dict(in_order.state_dict())
    inputs = task.normalize(task.test.inputs[:20])
    with torch.no_grad():
        assert torch.allclose(restored(inputs), in_order(inputs), atol=1e-4)


def test_error_curves_are_0_where_all_is_kept_and_rise_with_what_goes(teacher, task):
    curves = curves_of(teacher, task)
    assert list(curves) == ChannelPruned(teacher, task, SETTINGS).space().names
    for name, curve in curves.items():
        assert curve[-1] == 0.0, name
        assert 0 < curve[0] <= 1, name
        assert np.all(np.diff(curve) <= 1e-3), name


@pytest.mark.parametrize(("group", "reader"), [("conv1", "conv2"), ("conv2", "fc1"), ("fc1", "fc2")])
def test_the_error_of_a_count_is_what_the_reading_layers_output_loses(trained, task, group, reader):
    """conv2's channels are 25 features each of the flattened fc1."""
    settings = Settings(images=400, positions=10_000, round_to=1)
    curve = ChannelPruned(trained, task, settings).error_curves()[group]
    space = ChannelPruned(trained, task, settings).space()
    knob = space.knobs[space.names.index(group)]
    for place_on_grid in (0, 20, 40):
        values = np.linspace(knob.compressed, knob.full, len(curve))
        ratio = min(knob.choices, key=lambda choice: abs(choice - values[place_on_grid]))
        pruned = compressed(trained, {**dict.fromkeys(space.names, 1.0), group: ratio}, task, settings)
        whole, rest = (
            outputs_at(model, reader, task.normalize(task.train.inputs[:400])) for model in (trained, pruned)
        )
        axes = [axis for axis in range(whole.dim()) if axis != 1]
        variance = (whole - whole.mean(axes, keepdim=True)).square().sum()
        lost = ((whole - rest).square().sum() / variance).item()
        assert curve[place_on_grid] == pytest.approx(lost, rel=0.02, abs=1e-5)
        assert lost > 0


def test_a_channel_that_never_changes_costs_nothing_since_its_constant_is_moved(trained, task):
    model = copy.deepcopy(trained)
    with torch.no_grad():
        model.conv1.weight[3], model.conv1.bias[3] = 0.0, 2.0
    settings = Settings(images=300, positions=20, round_to=1)
    assert ChannelPruned(model, task, settings).calibration.kept["conv1"][5].tolist() == [0, 1, 2, 4, 5]
    plan = {**dict.fromkeys(ChannelPruned(model, task, settings).space().names, 1.0), "conv1": 5 / 6}
    assert distance(compressed(model, plan, task, settings), model, task) < 1e-8


def test_dead_channels_go_first_and_of_repeated_ones_the_other_takes_over(mobile, task):
    model = copy.deepcopy(mobile)
    maker, norm = model.features[2][0], model.features[2][1]
    depthwise, its_norm = model.features[3][0], model.features[3][1]
    with torch.no_grad():
        # What training leaves dead differs between processors: all are alive here, but for one.
        norm.weight.abs_().clamp_(min=0.5)
        norm.bias.clamp_(min=0.0)
        norm.weight[2], norm.bias[2] = 0.0, -1.0
        for tensor in (maker.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var, depthwise.weight,
                       its_norm.weight, its_norm.bias, its_norm.running_mean, its_norm.running_var):  # fmt: skip
            tensor[7] = tensor[4]
    calibration = ChannelPruned(model, task, SETTINGS).calibration
    group = "features.2.0"
    units = set(range(len(calibration.kept[group]) - 1))
    assert units - set(calibration.kept[group][-2].tolist()) == {2}
    pruned = reconstructed(model, calibration, {group: sorted(units - {2, 7})})
    assert distance(pruned, model, task) < 1e-4
    in_order = reconstruct_in_order(model, calibration.graph, {group: sorted(units - {2, 7})}, task, 500, 20)
    assert distance(in_order, model, task) < 1e-2


def test_stages_end_where_the_whole_plan_does_even_with_one_unit_left(trained, task):
    settings = Settings(images=300, positions=10, round_to=1, group_size=1)
    plan = {"conv1": 1 / 6, "conv2": 0.5, "fc1": 0.5, "fc2": 1.0}
    algorithm = ChannelPruned(trained, task, settings)
    plans = [*(stage.plan for stage in algorithm.stages(plan)), plan]
    assert [stage.epochs for stage in algorithm.stages(plan)] == [1, 1]
    assert [{name for name, ratio in each.items() if ratio < 1} for each in plans] == [
        {"conv1"}, {"conv1", "conv2"}, {"conv1", "conv2", "fc1"}
    ]  # fmt: skip
    start = None
    for each in plans:
        finished = algorithm.finish(each, start)
        rebuilt = algorithm.rebuild(finished.structure)
        assert shapes(finished.model) == shapes(rebuilt)
        rebuilt.load_state_dict(finished.model.state_dict())
        start = place(rebuilt, "cpu")


class AsksForTheSize(nn.Module):
    """A question about its inputs' size that Python answers: autograd can follow it, torch.fx cannot."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x if x.shape[-1] == 32 else F.interpolate(x, (32, 32)))


@pytest.fixture(scope="module")
def untraceable(trained: nn.Module) -> nn.Module:
    return AsksForTheSize(copy.deepcopy(trained)).eval()


def test_where_torch_fx_cannot_trace_the_model_all_is_done_at_once_and_said(untraceable, task, caplog):
    plan = plan_at(untraceable, task, 0.15)
    with caplog.at_level(logging.WARNING, "pfray"):
        finished = ChannelPruned(untraceable, task, SETTINGS).finish(plan).model
    assert [record.name for record in caplog.records] == ["pfray"]
    assert "all at once" in caplog.text
    assert "cannot trace AsksForTheSize (symbolically traced variables cannot be used" in caplog.text
    at_once = compressed(untraceable, plan, task).state_dict()
    assert all(torch.equal(at_once[name], tensor) for name, tensor in finished.state_dict().items())
    costs = ChannelPruned(untraceable, task, SETTINGS).space().costs(plan)
    assert costs == channel_costs(finished, example_input(task))
    assert distance(finished, untraceable, task) < 0.5 * distance(
        plainly_removed(untraceable, plan, task), untraceable, task
    )
    assert evaluate(finished, task, task.validation).accuracy > 0.7


def test_a_later_stage_that_cannot_be_traced_has_the_counts_of_the_plan_too(untraceable, task):
    algorithm = ChannelPruned(untraceable, task, SETTINGS)
    plan = dict.fromkeys(algorithm.space().names, 0.5)
    milder = {name: ratio if "conv" in name else 1.0 for name, ratio in plan.items()}
    first = algorithm.finish(milder).model
    later = algorithm.finish(plan, first).model
    assert shapes(later) == shapes(compressed(untraceable, plan, task)) != shapes(first)


def test_a_target_beyond_the_smallest_counts_is_refused_with_the_reachable_range(trained, task):
    space = ChannelPruned(trained, task, SETTINGS).space()
    smallest = {name: counts[0] / units for name, counts, units in (
        (group.name, allowed_counts(group, 2), group.units) for group in graph_of(trained, task).groups
    )}  # fmt: skip
    low = total_macs(compressed(trained, smallest, task), example_input(task))
    assert space.reachable("macs") == (low, total_macs(trained, example_input(task)))
    with pytest.raises(InfeasibleTarget, match=rf"target.macs: {low - 1:g} is out of reach; .* reach {low:g} to "):
        space.uniform({"macs": low - 1})
    assert space.uniform({"macs": low}) == smallest


def test_activations_that_are_not_finite_are_refused_by_the_layers_name(trained, task):
    model = copy.deepcopy(trained)
    graph_of(model, task)  # of a model that was sound when the run began
    model.conv1.bias.data[0] = float("nan")
    with pytest.raises(UnsupportedModel, match="layer conv2 reads values that are not finite"):
        ChannelPruned(model, task, SETTINGS).compress({"conv1": 0.5})


def test_a_model_without_channels_to_remove_is_refused():
    split = Split(torch.randn(8, 6), torch.zeros(8, dtype=torch.int64))
    task = Task("noise", split, split, split, num_outputs=2)
    with pytest.raises(UnsupportedModel, match=r"no channels that can be removed \(: its channels are an output"):
        ChannelPruned(nn.Linear(6, 2), task, Settings()).space()


def test_less_calibration_than_the_layers_are_wide_still_gives_a_working_model(trained, task):
    algorithm = ChannelPruned(trained, task, Settings(images=3, positions=2, round_to=1))
    space = algorithm.space()
    plan = space.decode(np.full(len(space), 0.5))
    for model in (algorithm.compress(plan).model, algorithm.finish(plan).model):
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
        # Weights of which three images say nothing stay as they were.
        assert distance(model, trained, task) < 1.5


def noise_task(inputs: Tensor, num_outputs: int) -> Task:
    split = Split(inputs, torch.arange(len(inputs)) % num_outputs)
    return Task("noise", split, split, split, num_outputs)


@pytest.mark.parametrize("images", [40, 1000])
def test_a_layer_that_reads_more_features_than_there_are_images_is_solved_for(images):
    """A linear layer that reads 32 flattened channels of 8 x 8."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 20), nn.ReLU(), nn.Linear(20, 5)
    ).eval()
    task = noise_task(torch.randint(256, (images, 3, 8, 8), dtype=torch.uint8), 5)
    algorithm = ChannelPruned(model, task, Settings(images=images, round_to=4))
    for curve in algorithm.error_curves().values():
        assert curve[-1] == 0.0
        assert np.all((curve >= 0) & (curve <= 1))
    for keep in (0.75, 0.25):
        plan = dict.fromkeys(algorithm.space().names, keep)
        plain = distance(plainly_removed(model, plan, task), model, task)
        for found in (algorithm.compress(plan).model, algorithm.finish(plan).model):
            assert distance(found, model, task) < min(0.9 * plain, 1.0)


def test_inputs_that_hardly_vary_around_large_means_are_pruned_and_reconstructed():
    """Temperatures in kelvin, 293 +- 1, without batch norms: hidden values are large and hardly vary."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2),
    ).eval()  # fmt: skip
    slope = (torch.arange(240) % 2 * 2 - 1)[:, None, None] * torch.linspace(-1, 1, 24)
    task = noise_task(293 + slope + 0.3 * torch.randn(240, 1, 24), 2)
    algorithm = ChannelPruned(model, task, Settings(round_to=4))
    assert all(np.all(np.diff(curve) <= 1e-3) for curve in algorithm.error_curves().values())
    plan = dict.fromkeys(algorithm.space().names, 0.5)
    for found in (algorithm.compress(plan).model, algorithm.finish(plan).model):
        assert distance(found, model, task) < 0.2


def test_a_calibration_is_computed_once_for_all_workers(trained, task, monkeypatch, tmp_path):
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path))
    plan = {"conv1": 0.5, "conv2": 0.5}
    first = ChannelPruned(copy.deepcopy(trained), task, SETTINGS).compress(plan).model
    monkeypatch.setattr(lasso, "lasso_selections", lambda gram: pytest.fail("computed again"))
    monkeypatch.setattr(covariance, "input_moments", lambda *args: pytest.fail("measured again"))
    again = ChannelPruned(copy.deepcopy(trained), task, SETTINGS).compress(plan).model
    assert all(torch.equal(first.state_dict()[name], tensor) for name, tensor in again.state_dict().items())


def test_a_network_that_costs_much_is_calibrated_on_fewer_images_and_says_so(trained, task, monkeypatch):
    default = ChannelPruned(trained, task, Settings(round_to=2))
    assert (default.images, default.notes()) == (1000, [])
    monkeypatch.setattr(calibration, "MACS", 100.4 * default.macs)
    costly = ChannelPruned(trained, task, Settings(round_to=2))
    assert costly.images == 100
    assert "channel_pruned calibrates on 100 training inputs instead of 1,000" in costly.notes()[0]
    explicit = ChannelPruned(trained, task, Settings(images=100, round_to=2))
    assert explicit.notes() == []
    # Those are what both steps read.
    plan = costly.space().uniform({"macs": 0.5 * total_macs(trained, example_input(task))})
    for step in ("compress", "finish"):
        found, expected = (getattr(each, step)(plan).model.state_dict() for each in (costly, explicit))
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
