"""The reconstruction in order: what it makes up for, and that what it fits to is what the pruned network computes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.errors import UnsupportedModel
from pfray.nn.fx import Untraceable
from pfray.pruning.channels.graph import ChannelGraph, channel_graph
from pfray.pruning.channels.prune import Kept, prune
from pfray.pruning.reconstruction import sequential
from pfray.pruning.reconstruction.sequential import reconstruct_in_order
from pfray.task import Split, Task
from tests.zoo import randomize

IMAGES, POSITIONS = 60, 1000
GRAPHS: dict[str, tuple[nn.Module, ChannelGraph]] = {}


@pytest.fixture(scope="module")
def task() -> Task:
    inputs = torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    split = Split(inputs, torch.zeros(IMAGES, dtype=torch.int64))
    return Task("noise", split, split, split, num_outputs=4)


def graph_of(make: Callable[[], nn.Module]) -> tuple[nn.Module, ChannelGraph]:
    """(the model, always with the same weights; its graph, found once)."""
    torch.manual_seed(0)
    model = randomize(make()).eval()
    if make.__name__ not in GRAPHS:
        GRAPHS[make.__name__] = model, channel_graph(model, torch.randn(1, 3, 8, 8))
    return copy.deepcopy(model), GRAPHS[make.__name__][1]


def refitted(model: nn.Module, graph: ChannelGraph, kept: Kept, task: Task) -> nn.Module:
    return reconstruct_in_order(model, graph, kept, task, IMAGES, POSITIONS)


def pruned(model: nn.Module, graph: ChannelGraph, kept: Kept) -> nn.Module:
    student = copy.deepcopy(model).eval()
    prune(student, graph, kept)
    return student


@torch.no_grad()
def error(model: nn.Module, student: nn.Module, task: Task) -> float:
    """Squared error of the outputs as a share of their variance, with the teacher in evaluation mode."""
    own = copy.deepcopy(model).eval()(task.train.inputs)
    return ((student(task.train.inputs) - own).square().sum() / (own - own.mean(0)).square().sum()).item()


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, bias=False)
        self.bn2, self.conv3 = nn.BatchNorm2d(6), nn.Conv2d(6, 5, 2, 2)
        self.fc = nn.Linear(5 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.conv1(x)))))
        return self.fc(F.relu(self.conv3(x)).flatten(1))


def redundant() -> nn.Module:
    """Of conv1 channel 6 is twice channel 1, channel 7 a constant; of conv2 channel 4 is a copy of channel 0."""
    model = Chain()
    with torch.no_grad():
        for name in ("weight", "bias"):
            parameter = getattr(model.conv1, name)
            parameter[6], parameter[7] = 2 * parameter[1], 0.0
        model.conv1.bias[7] = 3.0
        model.conv2.weight[4] = model.conv2.weight[0]
    return model


def agree_in_channel_4(model: nn.Module) -> None:
    for own in (model.bn2.weight, model.bn2.bias, model.bn2.running_mean, model.bn2.running_var):
        own.data[4] = own.data[0]


def test_removed_channels_that_are_combinations_of_kept_ones_are_made_up_for(task):
    model, graph = graph_of(redundant)
    agree_in_channel_4(model)
    kept = {"conv1": range(6), "conv2": [0, 1, 2, 3, 5]}
    student = refitted(model, graph, kept, task)
    assert (student.conv1.out_channels, student.conv2.in_channels, student.conv2.out_channels) == (6, 6, 5)
    assert error(model, student, task) < 1e-3 < 0.05 < error(model, pruned(model, graph, kept), task)
    # conv2 has no bias: what the constant channel contributed went into the batch norm.
    constant = 3 * model.conv2.weight[[0, 1, 2, 3, 5], 7].sum((1, 2))
    moved = student.bn2.running_mean - model.bn2.running_mean[[0, 1, 2, 3, 5]]
    assert torch.allclose(moved, -constant, atol=0.02 * constant.abs().max().item())
    assert student.conv2.bias is None


def test_a_constant_goes_into_the_bias_where_there_is_one(task):
    model, graph = graph_of(redundant)
    with torch.no_grad():
        model.bn2.weight[5], model.bn2.bias[5] = 0.0, 1.0
    student = refitted(model, graph, {"conv2": range(5)}, task)
    moved = student.conv3.bias - model.conv3.bias
    assert torch.allclose(moved, model.conv3.weight[:, 5].sum((1, 2)), atol=1e-3)
    assert torch.allclose(student.conv3.weight, model.conv3.weight[:, :5], atol=1e-3)
    assert error(model, student, task) < 1e-6


def test_without_a_place_for_a_constant_the_weights_make_up_for_it(task):
    model, graph = graph_of(redundant)
    model.conv3.bias = None
    student = refitted(model, graph, {"conv2": [0, 1, 2]}, task)
    assert student.conv3.bias is None
    assert error(model, student, task) < 0.8 * error(model, pruned(model, graph, {"conv2": [0, 1, 2]}), task)


def test_a_layer_is_fitted_to_what_the_pruned_layers_before_it_give(task):
    model, graph = graph_of(redundant)
    kept = {"conv1": range(4), "conv2": range(3), "conv3": range(3)}
    student = refitted(model, graph, kept, task)
    assert error(model, student, task) < 0.5 * error(model, pruned(model, graph, kept), task)
    assert_least_squares(model, student, task, "fc")


def assert_least_squares(model: nn.Module, student: nn.Module, task: Task, name: str) -> None:
    """The layer's weights are the best there are for what the student's layer reads and the teacher's gives."""
    seen: dict[str, Tensor] = {}
    handles = [
        own.get_submodule(name).register_forward_hook(lambda _, args, out, key=key: seen.update({key: (args[0], out)}))
        for key, own in (("teacher", model), ("student", student))
    ]
    with torch.no_grad():
        for own in (model, student):
            own(task.train.inputs)
    for handle in handles:
        handle.remove()
    target, (rows, outputs) = seen["teacher"][1], seen["student"]
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    best = (rows @ torch.linalg.lstsq(rows, target).solution - target).square().sum()
    assert (outputs - target).square().sum() < 1.02 * best


class Block(nn.Module):
    """Projections where ``stride`` is 2; sums and activations in place."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 8, 3, stride, 1)
        self.conv2 = nn.Conv2d(8, outputs, 3, 1, 1, bias=not norm)
        self.bn2 = nn.BatchNorm2d(outputs) if norm else None
        self.project = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.conv1(x), inplace=True))
        out = out if self.bn2 is None else self.bn2(out)
        out += x if self.project is None else self.project(x)
        return out


class Residual(nn.Module):
    def __init__(self, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.Sequential(Block(6, 6, stride, norm), nn.ReLU(inplace=True), Block(6, 6, 1, norm))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        return self.fc(self.blocks(x).mean((2, 3)))


def identity_with_norm() -> nn.Module:
    return Residual()


def identity_without_norm() -> nn.Module:
    return Residual(norm=False)


def projection() -> nn.Module:
    return Residual(stride=2)


NETWORKS = [identity_with_norm, identity_without_norm, projection]


@torch.no_grad()
def block_error(model: nn.Module, student: nn.Module, task: Task) -> float:
    """Of the last block's output."""
    own, other = (net.blocks(F.relu(net.stem(task.train.inputs))) for net in (model, student))
    return ((other - own).square().sum() / (own - own.mean((0, 2, 3), keepdim=True)).square().sum()).item()


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_the_last_layer_of_a_branch_makes_up_for_what_the_shortcut_has_lost(task, make, monkeypatch):
    model, graph = graph_of(make)
    kept = {"blocks.0.conv1": range(2)}
    compensated = block_error(model, refitted(model, graph, kept, task), task)
    monkeypatch.setattr(sequential, "find_addition", lambda *_: None)
    alone = block_error(model, refitted(model, graph, kept, task), task)
    assert compensated < 0.9 * alone
    assert alone < 0.9 * block_error(model, pruned(model, graph, kept), task)


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_what_is_walked_is_what_the_network_computes_whatever_is_done_in_place(task, make, monkeypatch):
    walks = []

    class Recorded(sequential.Walk):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            walks.append(self)

    monkeypatch.setattr(sequential, "Walk", Recorded)
    model, graph = graph_of(make)
    kept = {group.name: range(max(1, group.units // 2)) for group in graph.groups}
    assert len(kept) >= 2
    before, inputs = copy.deepcopy(model.state_dict()), task.train.inputs.clone()
    student = refitted(model, graph, kept, task)
    for walk, network in zip(walks[-2:], (model, student), strict=True):
        # Nothing but the outputs is kept to the end.
        assert [node.op for node in walk.values] == ["output"]
        with torch.no_grad():
            assert torch.allclose(next(iter(walk.values.values()))[0], network(task.train.inputs), atol=1e-5)
    assert_least_squares(model, student, task, "fc")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(inputs, task.train.inputs)
    assert not student.training


class Shared(nn.Module):
    """``twice`` is run two times, the second time on channels that others have changed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.inner, self.outer, self.fc = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.twice(F.relu(self.stem(x))))
        x = F.relu(self.twice(self.outer(F.relu(self.inner(x)))))
        return self.fc(x.mean((2, 3)))


def test_a_layer_that_runs_twice_is_left_alone(task):
    model, graph = graph_of(Shared)
    kept = {"inner": range(3)}
    student = refitted(model, graph, kept, task)
    for name, tensor in model.twice.state_dict().items():
        assert torch.equal(student.twice.state_dict()[name], tensor)
    assert torch.equal(student.stem.weight, model.stem.weight)
    assert not torch.equal(student.outer.weight, model.outer.weight[:, :3])
    assert not torch.equal(student.fc.weight, model.fc.weight)
    assert error(model, student, task) < 0.8 * error(model, pruned(model, graph, kept), task)


def test_where_nothing_goes_nothing_changes_before_the_first_cut(task):
    model, graph = graph_of(redundant)
    student = refitted(model, graph, {group.name: range(group.units) for group in graph.groups}, task)
    assert torch.equal(student.conv1.weight, model.conv1.weight)
    assert error(model, student, task) < 1e-10


class Broadcast(nn.Module):
    """Sums of unequal shapes: a layer's output with one mean for all positions, and with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, 6, 2, 2), nn.Parameter(torch.randn(1, 16, 6))
        self.up, self.down, self.fc = nn.Linear(6, 12), nn.Linear(12, 6), nn.Linear(6, 4)
        self.narrow, self.wide = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor, shift: float = 0.0, mask: Tensor | None = None) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        mean = x.mean(1, keepdim=True) + shift
        x = self.down(F.gelu(self.up(x))) + mean
        x = self.wide(F.gelu(self.narrow(x))) + self.position
        return self.fc(F.dropout(x if mask is None else x * mask, 0.5, self.training).mean(1))


@pytest.mark.parametrize("training", [False, True])
def test_sums_of_unequal_shapes_default_arguments_and_the_training_mode_do_no_harm(task, training):
    model, graph = graph_of(Broadcast)
    kept = {"up": range(6), "narrow": range(4)}
    student = refitted(model.train(training), graph, kept, task)
    assert model.training == training
    assert not student.training
    assert error(model, student, task) < 0.5 * error(model, pruned(model, graph, kept), task)
    assert_least_squares(model.eval(), student, task, "fc")


class Untraced(nn.Module):
    """What it does depends on a shape, of which torch.fx knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.relu(self.conv1(x)))
        return x.mean((2, 3)) if x.shape[-1] > 1 else x.flatten(1)


class Misled(Untraced):
    """torch.fx gives it something that is no tensor, and sees the other way."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if isinstance(x, Tensor) else 2 * self.conv2(self.conv1(x)).mean((2, 3))


@pytest.mark.parametrize("make", [Untraced, Misled])
def test_a_model_that_torch_fx_cannot_trace_is_refused(task, make):
    model, graph = graph_of(make)
    with pytest.raises(Untraceable, match=r"\w"):
        refitted(model, graph, {"conv1": [0, 1, 2]}, task)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def test_layers_inside_an_encoder_of_torch_are_fitted_too(task):
    model, graph = graph_of(Encoder)
    kept = {"layer.linear1": range(6)}
    student = refitted(model, graph, kept, task)
    assert (student.layer.linear1.out_features, student.layer.linear2.in_features) == (6, 6)
    assert type(student.layer.self_attn) is nn.MultiheadAttention
    assert error(model, student, task) < 0.5 * error(model, pruned(model, graph, kept), task)


class Reshaped(nn.Module):
    """Its forward pass reads the size of the layer that comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.project = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 9 * 6)
        self.up, self.last = nn.ConvTranspose2d(6, 5, 3, padding=1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.project(torch.relu(self.first(x)).mean((2, 3)))).view(-1, self.up.in_channels, 3, 3)
        return self.last(torch.relu(self.up(x)))


def test_a_size_that_the_forward_pass_reads_is_that_of_the_pruned_layer(task):
    model, graph = graph_of(Reshaped)
    assert [(group.name, group.units) for group in graph.groups] == [("first", 4), ("project", 6), ("up", 5)]
    kept = {"project": [0, 2, 3], "up": [1, 2, 4]}
    student = refitted(model, graph, kept, task)
    assert (student.project.out_features, student.up.in_channels) == (27, 3)
    assert error(model, student, task) < error(model, pruned(model, graph, kept), task)


def test_a_calibration_smaller_than_the_layer_is_wide_gives_finite_weights(task):
    model, graph = graph_of(redundant)
    kept = {"conv1": range(5), "conv2": range(4)}
    student = reconstruct_in_order(model, graph, kept, task, images=3, positions=2)
    assert all(tensor.isfinite().all() for tensor in student.state_dict().values())
    # Six rows say little of 45 and more weights, and those that they say nothing of stay.
    assert error(model, student, task) < 2 * error(model, pruned(model, graph, kept), task)


def test_values_that_are_not_finite_are_refused_by_the_layers_name(task):
    model, graph = graph_of(redundant)
    model.conv1.bias.data[0] = np.inf
    with pytest.raises(UnsupportedModel, match=r"layer conv2 reads or should give values that are not finite. Remedy"):
        refitted(model, graph, {"conv1": range(4)}, task)


class TwoBranches(nn.Module):
    """An image and a row of numbers, by keyword or position, with a mask that may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.row = nn.Conv2d(3, 8, 3), nn.Linear(5, 8)
        self.mix, self.fc = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, image: Tensor, row: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        x = F.relu(self.conv(image)).mean((2, 3)) + F.relu(self.row(row)) * scale
        x = F.relu(self.mix(x if mask is None else x * mask))
        return {"logits": self.fc(x)}


@pytest.mark.parametrize("by_name", [False, True])
def test_inputs_of_any_form_are_walked(task, by_name):
    torch.manual_seed(0)
    model = randomize(TwoBranches()).eval()
    image, row = task.train.inputs, torch.randn(IMAGES, 5)
    graph = channel_graph(model, (image[:1], row[:1]))
    inputs = {"row": row, "image": image} if by_name else (image, row)
    split = Split(inputs, torch.zeros(IMAGES, 4))
    pairs = Task("pairs", split, split, split, 4, loss=lambda outputs, _: outputs["logits"].mean(),
                 score=lambda outputs, _: outputs["logits"].mean(1))  # fmt: skip
    kept = {"mix": range(6)}
    student = reconstruct_in_order(model, graph, kept, pairs, IMAGES, POSITIONS)
    with torch.no_grad():
        own, refit, plain = (net(image, row)["logits"] for net in (model, student, pruned(model, graph, kept)))
    assert (refit - own).square().sum() < 0.5 * (plain - own).square().sum()


def test_inputs_that_would_need_too_much_memory_are_fewer_with_more_positions_each(task, monkeypatch):
    drawn = []
    draw = sequential.draw_positions
    monkeypatch.setattr(
        sequential, "draw_positions", lambda *args: drawn.append((len(args[1]), args[2])) or draw(*args)
    )
    model, graph = graph_of(redundant)
    kept = {"conv1": range(6)}
    reconstruct_in_order(model, graph, kept, task, IMAGES, 4)
    assert set(drawn) == {(60, 4)}
    drawn.clear()
    # At most conv1's output and what relu makes of it, (8, 6, 6) each in float32: 2,304 bytes in each of the two walks.
    monkeypatch.setattr(sequential, "MEMORY", 20 * 2 * 2304)
    fewer = reconstruct_in_order(model, graph, kept, task, IMAGES, 4)
    assert set(drawn) == {(20, 12)}
    assert error(model, fewer, task) < 1e-2 < error(model, pruned(model, graph, kept), task)


def test_inputs_far_from_zero_are_fitted_as_if_they_were_centred():
    """Temperatures in kelvin, 293 +- 1; the last channels are combinations of the others."""
    generator = torch.Generator().manual_seed(0)
    inputs = 293 + torch.randn(400, 6, generator=generator)
    split = Split(inputs, torch.zeros(400, dtype=torch.int64))
    own = Task("kelvin", split, split, split, num_outputs=3)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 3)).eval()
    graph = channel_graph(model, inputs[:1])
    student = reconstruct_in_order(model, graph, {"0": range(6)}, own, 400, 1)
    assert error(model, student, own) < 1e-2 < error(model, pruned(model, graph, {"0": range(6)}), own)
