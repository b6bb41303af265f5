"""What can be taken out of a network, what that costs, and what it leaves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pfray.errors import UnsupportedModel
from pfray.measure.cost import count_params, total_macs
from pfray.models.lenet import lenet
from pfray.models.mobilenet import mobilenet_v1
from pfray.models.resnet import resnet20
from pfray.models.resnet18 import resnet18
from pfray.models.vgg import vgg11
from pfray.pruning.layers.find import layer_graph
from pfray.pruning.layers.graph import remove_layers
from pfray.pruning.layers.linear_maps import fit_maps, take_out
from tests.small import make_task
from tests.zoo.streams import BatchNormAct

EXAMPLE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MODELS = {
    "lenet": lenet,
    "vgg": lambda: vgg11(width=0.25),
    "resnet18": lambda: resnet18(width=0.125),
    "resnet20": resnet20,
    "mobilenet": lambda: mobilenet_v1(width=0.25),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def test_any_choice_leaves_a_model_that_runs_trains_and_costs_what_was_predicted(model: nn.Module) -> None:
    found = layer_graph(model, EXAMPLE)
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3, 0.6, 1.0):
        gone = [name for name in found.names if rng.random() < share]
        student = copy.deepcopy(model)
        remove_layers(student, found, gone)
        assert found.costs(gone) == {"macs": total_macs(student, EXAMPLE), "params": count_params(student)[0]}
        student.train()(EXAMPLE.expand(2, -1, -1, -1).clone()).sum().backward()
        assert not any(module.training != student.training for module in student.modules())


def test_taking_more_out_never_costs_more(model: nn.Module) -> None:
    found = layer_graph(model, EXAMPLE)
    rng = np.random.default_rng(1)
    for _ in range(30):
        gone = [name for name in found.names if rng.random() < rng.random()]
        before = found.costs(gone)
        for name in set(found.names) - set(gone):
            after = found.costs([*gone, name])
            assert all(after[unit] <= before[unit] for unit in before)


def test_of_a_vgg_all_convolutions_but_the_first_can_go() -> None:
    found = layer_graph(vgg11(width=0.25), EXAMPLE)
    assert found.names == [f"features.{i}" for i in (4, 8, 11, 15, 18, 22, 25)]
    assert found.kept == {"features.0": "it reads the input", "classifier": "it gives the output"}


def test_of_a_resnet_blocks_that_keep_the_shape_and_first_convolutions_can_go() -> None:
    found = layer_graph(resnet18(width=0.125), EXAMPLE)
    blocks = ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    inner = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert sorted(found.names) == sorted([*blocks, *inner])
    assert found.names[:3] == ["layer1.0", "layer1.0.conv1", "layer1.1"]


def test_the_stride_of_a_layer_that_goes_is_moved_on() -> None:
    model = resnet18(width=0.125)
    remove_layers(model, layer_graph(model, EXAMPLE), ["layer2.0.conv1"])
    assert model.layer2[0].conv2.stride == (2, 2)
    assert model.layer2[0].conv2.in_channels == 8
    assert model(EXAMPLE.expand(2, -1, -1, -1)).shape == (2, 10)


def test_a_block_that_goes_leaves_its_input() -> None:
    model = resnet18(width=0.125).eval()
    student = copy.deepcopy(model)
    remove_layers(student, layer_graph(model, EXAMPLE), ["layer1.1", "layer1.1.conv1"])
    read: list[Tensor] = []
    student.layer1[1].register_forward_hook(lambda _, inputs, output: read.extend([inputs[0], output]))
    student(EXAMPLE)
    assert torch.equal(*read)


def test_a_layer_that_is_a_linear_map_goes_without_a_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 1), nn.AvgPool2d(2), nn.Conv2d(6, 8, 1),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 40), nn.Linear(40, 3),
    ).double().eval()  # fmt: skip
    task = make_task()
    found = layer_graph(model.float(), task.train.inputs[:1])
    assert found.names == ["1", "3", "6"]
    maps = fit_maps(model, found, task, 60)
    # The ridge, of a hundredth, is all that is lost.
    assert all(error < 2e-3 for error in maps.errors.values())
    for gone in (["1"], ["3"], ["6"], ["1", "3", "6"]):
        student = take_out(model, maps, gone)
        inputs = task.train.inputs
        difference = (student(inputs) - model(inputs)).std() / model(inputs).std()
        assert difference < 0.1, gone
        assert count_params(student)[0] == found.costs(gone)["params"] < count_params(model)[0]


def test_what_a_layer_does_beyond_a_linear_map_is_its_error() -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*parts, nn.Linear(512, 3)).eval()
    task = make_task()
    error = fit_maps(model, layer_graph(model, task.train.inputs[:1]), task, 60).errors["2"]
    assert 0.2 < error < 1.0


class Named(nn.Module):
    """Outputs by name, and norms with an activation inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), BatchNormAct(6, nn.ReLU()), nn.Conv2d(6, 6, 3, padding=1),
            BatchNormAct(6, nn.ReLU()), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.left, self.right = nn.Linear(6, 2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x).mean((2, 3))
        return {"left": self.left(x), "right": self.right(x)}


def test_layers_go_with_norms_that_hold_an_activation_from_models_with_several_outputs() -> None:
    model = Named().eval()
    found = layer_graph(model, EXAMPLE)
    assert found.names == ["body.2"]
    remove_layers(model, found, ["body.2"])
    assert [type(model.body[index]) for index in (2, 3)] == [nn.Identity, nn.Identity]
    assert found.costs(["body.2"]) == {"macs": total_macs(model, EXAMPLE), "params": count_params(model)[0]}


def test_a_bottleneck_whose_removal_would_cost_more_stays() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 64, 1), nn.Conv2d(64, 4, 1), nn.Conv2d(4, 64, 3, padding=1), nn.Flatten(), nn.Linear(1024, 3)
    )
    found = layer_graph(model, torch.randn(1, 3, 4, 4))
    assert found.kept["1"] == "without it the layers behind it would cost more than it does"


class Looping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else self.conv(x)


def test_a_model_that_cannot_be_followed_is_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedModel, match=r"Looping cannot be followed .*Remedy: a model that torch\.fx"):
        layer_graph(Looping(), EXAMPLE)
