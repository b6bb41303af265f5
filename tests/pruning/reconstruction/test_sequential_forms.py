"""The reconstruction in order where the forward pass repeats layers, broadcasts, reads sizes, or takes other inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.nn.fx import Untraceable
from pfray.pruning.channels.graph import channel_graph
from pfray.pruning.reconstruction.sequential import reconstruct_in_order
from pfray.task import Split, Task
from tests.pruning.reconstruction.refitting import (
    IMAGES,
    POSITIONS,
    assert_least_squares,
    error,
    graph_of,
    pruned,
    refitted,
)
from tests.zoo import randomize


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
